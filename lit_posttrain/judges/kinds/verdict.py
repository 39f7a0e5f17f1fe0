"""Two responses compared by a written verdict: reasons first, then A, B or a tie on the last line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.constitution import Principle
from lit_posttrain.judges.kinds.asking import Unparsable, quoted, whole
from lit_posttrain.judges.kinds.comparing import Compared
from lit_posttrain.judges.kinds.pairs import wins_of_first
from lit_posttrain.judges.kinds.pairwise import both_orders
from lit_posttrain.judges.kinds.shown import principles_text, shown
from lit_posttrain.judges.spec import JudgeSpec

_TEXT = """You compare two responses to the same conversation. {principles}
Neither the order of the responses nor their length counts.

{shown}

First say in a few sentences what speaks for each response and against it. Then end with one line that has your
verdict, and nothing after it:
Verdict: A
if response A is better,
Verdict: B
if response B is better, or
Verdict: tie
if they are equally good."""
_LAST = re.compile(r"verdict\s*:\s*(?:response\s+)?(a|b|tie)", re.IGNORECASE)
_FIRST_WINS = {"a": 1.0, "b": 0.0, "tie": 0.5}


class Verdict:
    """`Comparison` of the kind verdict."""

    kind = "verdict"
    version = 1

    def orders(self, count: int) -> list[tuple[int, ...]]:
        """Each two responses, in both orders."""
        return both_orders(count)

    def call(self, item: Item, order: Sequence[int], principles: Sequence[Principle], spec: JudgeSpec) -> Call:
        """The question."""
        text = _TEXT.format(principles=principles_text(principles), shown=shown(item, order))
        return Call([{"role": "user", "content": text}], spec.max_tokens, spec.temperature, seed=spec.seed)

    def read(self, reply: Reply, count: int) -> Compared:
        """By the last line alone: what stands before it may quote a response."""
        reason, last = last_line(reply)
        found = _LAST.fullmatch(last)
        if found is None:
            raise Unparsable(f"the last line is not a verdict (Verdict: A, B or tie), but {quoted(last)}")
        return Compared(wins_of_first(_FIRST_WINS[found[1].lower()]), reason)


def last_line(reply: Reply) -> tuple[str, str]:
    """A reply's text before its last line, and that line without Markdown's emphasis, brackets and a full stop.

    Raises:
        Unparsable: the reply is empty, or was cut off.
    """
    reason, _, last = whole(reply).rpartition("\n")
    return reason.strip(), re.sub(r"[*_`#\[\]()]", "", last).strip().removesuffix(".").strip()
