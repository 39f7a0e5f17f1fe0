"""Two responses compared by the probabilities of the answers A and B: a soft label, from one token of each order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.constitution import Principle
from lit_posttrain.judges.kinds.asking import probabilities
from lit_posttrain.judges.kinds.comparing import Compared
from lit_posttrain.judges.kinds.pairs import wins_of_first
from lit_posttrain.judges.kinds.shown import principles_text, shown
from lit_posttrain.judges.spec import JudgeSpec

_CHOICES = ("A", "B")
_TEXT = """You compare two responses to the same conversation. {principles}
Neither the order of the responses nor their length counts.

{shown}

Which response is better? Answer with its letter, A or B, and nothing else."""


class Pairwise:
    """`Comparison` of the kind pairwise."""

    kind = "pairwise"
    version = 1

    def orders(self, count: int) -> list[tuple[int, ...]]:
        """Each two responses, in both orders."""
        return both_orders(count)

    def call(self, item: Item, order: Sequence[int], principles: Sequence[Principle], spec: JudgeSpec) -> Call:
        """The question."""
        text = _TEXT.format(principles=principles_text(principles), shown=shown(item, order))
        return Call([{"role": "user", "content": text}], max_tokens=4, choices=_CHOICES)

    def read(self, reply: Reply, count: int) -> Compared:
        """By the answers' probabilities."""
        return Compared(wins_of_first(probabilities(reply, _CHOICES)[0]), mass=reply.choice_mass)


def both_orders(count: int) -> list[tuple[int, ...]]:
    """Each two of `count` responses, in both orders."""
    return [order for i, j in combinations(range(count), 2) for order in ((i, j), (j, i))]
