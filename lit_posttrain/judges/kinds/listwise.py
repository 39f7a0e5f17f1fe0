"""All responses to a prompt ranked at once: reasons first, then a ranking with ties on the last line. The orders are
that of the data and its reverse, so that each two responses are seen in both orders."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.constitution import Principle
from lit_posttrain.judges.kinds.asking import Unparsable, quoted
from lit_posttrain.judges.kinds.comparing import Compared
from lit_posttrain.judges.kinds.pairs import wins_of_ranks
from lit_posttrain.judges.kinds.shown import LETTERS, principles_text, shown
from lit_posttrain.judges.kinds.verdict import last_line
from lit_posttrain.judges.spec import JudgeSpec

_TEXT = """You rank {count} responses to the same conversation. {principles}
Neither the order of the responses nor their length counts.

{shown}

First say in a few sentences what speaks for each response and against it. Then end with one line that ranks all of
them, and nothing after it: the best first, with > between a better and a worse one and = between equally good ones. It
looks like this, with your own order of the letters {letters}:
Ranking: {example}"""
_LAST = re.compile(r"ranking\s*:\s*([a-z](?:\s*[>=]\s*[a-z])*)", re.IGNORECASE)


class Listwise:
    """`Comparison` of the kind listwise."""

    kind = "listwise"
    version = 1

    def orders(self, count: int) -> list[tuple[int, ...]]:
        """The order of the data, and its reverse."""
        return [tuple(range(count)), tuple(reversed(range(count)))]

    def call(self, item: Item, order: Sequence[int], principles: Sequence[Principle], spec: JudgeSpec) -> Call:
        """The question."""
        letters = LETTERS[: len(order)]
        text = _TEXT.format(
            count=len(order),
            principles=principles_text(principles),
            shown=shown(item, order),
            letters=", ".join(letters),
            example=" > ".join(letters[1:] + letters[0]),
        )
        return Call([{"role": "user", "content": text}], spec.max_tokens, spec.temperature, seed=spec.seed)

    def read(self, reply: Reply, count: int) -> Compared:
        """By the last line alone; it must name every response once."""
        reason, last = last_line(reply)
        found = _LAST.fullmatch(last)
        if found is None:
            raise Unparsable(f"the last line is not a ranking such as Ranking: B > A = C, but {quoted(last)}")
        ranks: dict[str, int] = {}
        for rank, tied in enumerate(found[1].upper().split(">")):
            for letter in tied.split("="):
                if letter.strip() in ranks:
                    raise Unparsable(f"{quoted(last)} ranks {letter.strip()} twice")
                ranks[letter.strip()] = rank
        if sorted(ranks) != list(LETTERS[:count]):
            raise Unparsable(f"{quoted(last)} does not rank each of {', '.join(LETTERS[:count])} once")
        return Compared(wins_of_ranks([ranks[letter] for letter in LETTERS[:count]]), reason)
