"""Judges that compare responses: every comparison is made in both orders, and the two are averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from typing import Any, Protocol

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.constitution import Principle
from lit_posttrain.judges.judge import Opinion
from lit_posttrain.judges.kinds.asking import Asking, Missing, no_opinion, together
from lit_posttrain.judges.kinds.identity import SAMPLE, OfModel, identity, prompt_hash
from lit_posttrain.judges.kinds.pairs import Wins, of_both_orders, ranks_of, shares
from lit_posttrain.judges.kinds.shown import LETTERS
from lit_posttrain.judges.kinds.views import drawn_names, views_of
from lit_posttrain.judges.spec import JudgeSpec


@dataclass(frozen=True)
class Compared:
    """What a reply says of the k responses that were shown. mass: `Reply.choice_mass`, NaN if unknown."""

    wins: Wins
    reason: str = ""
    mass: float = math.nan


class Comparison(Protocol):
    """What is asked, and how a reply is read."""

    kind: str
    version: int

    def orders(self, count: int) -> list[tuple[int, ...]]:
        """Which of `count` responses are shown together, and in which order: each two of them in both orders."""
        ...

    def call(self, item: Item, order: Sequence[int], principles: Sequence[Principle], spec: JudgeSpec) -> Call:
        """The question."""
        ...

    def read(self, reply: Reply, count: int) -> Compared:
        """What the reply says of the `count` responses shown.

        Raises:
            Unparsable: it is not of the form that was asked for.
        """
        ...


class ComparingJudge(OfModel[Comparison]):
    """A judge of the kinds pairwise, verdict and listwise."""

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """As `Judge.identity`."""
        view = self.constitution.principles
        calls = [self.way.call(SAMPLE, order, view, self.spec) for order in self.way.orders(2)]
        hashed = prompt_hash(calls, self.constitution)
        told = identity(self.backend, self.spec, self.way.kind, self.way.version, hashed)
        return {**told, "disagreement": self.spec.disagreement}

    async def opinion(self, item: Item) -> Opinion:
        """As `Judge.opinion`."""
        count = len(item.responses)
        if not 2 <= count <= len(LETTERS):
            raise BadRow("responses", f"{count} responses; {self.way.kind} compares from 2 to {len(LETTERS)}")
        asking = Asking(self.backend, self.spec.reasks)
        views, orders = views_of(item, self.constitution, self.spec), self.way.orders(count)
        asked = [(order, self.way.call(item, order, view, self.spec)) for view in views for order in orders]

        async def compared(order: tuple[int, ...], call: Call) -> Compared | Missing:
            return await asking.ask(call, lambda reply: self.way.read(reply, len(order)))

        said = await together(compared(*one) for one in asked)
        found = list(zip([order for order, _ in asked], said, strict=True))
        pairs = _pairs(found, count, len(views))
        details: dict[str, Any] = _in_record(pairs) | drawn_names(views, self.spec)
        if masses := [one.mass for one in said if isinstance(one, Compared) and not math.isnan(one.mass)]:
            details["choice_mass"] = round(min(masses), 6)
        if missing := [one for one in said if isinstance(one, Missing)]:
            return no_opinion(missing, count, asking.calls, details)
        means = {
            pair: of_both_orders(p, q, self.spec.disagreement)
            for pair, (p, q) in pairs.items()
            if p is not None and q is not None
        }
        scores = shares(means, count)
        return Opinion(
            "verdict",
            [*scores],
            ranks_of(scores),
            means[0, 1] if count == 2 else None,
            reason="\n\n".join(_reason(order, one) for order, one in found if isinstance(one, Compared) and one.reason),
            calls=asking.calls,
            details=details,
        )


Pairs = dict[tuple[int, int], tuple[float | None, float | None]]


def _pairs(found: Sequence[tuple[tuple[int, ...], Compared | Missing]], count: int, views: int) -> Pairs:
    """For each two responses i < j the probability that i is better where it was shown before j, and behind it: means
    over the principles, None where a reply is missing."""
    before = dict.fromkeys(permutations(range(count), 2), 0.0)  # that the one shown first is better
    missing = set()
    for order, said in found:
        for first, second in combinations(range(len(order)), 2):
            pair = order[first], order[second]
            if isinstance(said, Missing):
                missing.add(pair)
            else:
                before[pair] += said.wins[first][second] / views
    return {
        (i, j): (
            None if (i, j) in missing else before[i, j],
            None if (j, i) in missing else 1 - before[j, i],
        )
        for i, j in combinations(range(count), 2)
    }


def _in_record(pairs: Pairs) -> dict[str, Any]:
    rounded = {pair: [None if one is None else round(one, 6) for one in both] for pair, both in pairs.items()}
    if len(rounded) == 1:
        return {"orders": rounded[0, 1]}
    return {"pairs": [[*pair, *both] for pair, both in rounded.items()]}


def _reason(order: Sequence[int], said: Compared) -> str:
    """A reason, with the responses that its letters mean."""
    letters = ", ".join(f"{LETTERS[place]} is response {index + 1}" for place, index in enumerate(order))
    return f"({letters}) {said.reason}"
