"""Judges that mark each response alone: there is no order that could matter, and no other response beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.constitution import Constitution, Principle
from lit_posttrain.judges.judge import Opinion
from lit_posttrain.judges.kinds.asking import Asking, Missing, no_opinion, together
from lit_posttrain.judges.kinds.identity import OfModel, identity
from lit_posttrain.judges.kinds.pairs import ranks_of
from lit_posttrain.judges.kinds.views import drawn_names, views_of
from lit_posttrain.judges.spec import JudgeSpec


@dataclass(frozen=True)
class Marks:
    """What a reply says of one response. marks: by criterion, in its own units. mass: `Reply.choice_mass`, NaN if
    unknown."""

    marks: Mapping[str, float]
    reason: str = ""
    mass: float = math.nan


Question = tuple[Call, Callable[[Reply], Marks]]
"""A question on one response, and how its reply is read; reading raises `Unparsable`."""


class Marking(Protocol):
    """What is asked of one response, and how its marks become a score."""

    kind: str
    version: int

    @property
    def column(self) -> str:
        """The column of an item that decides what is asked beside its conversation; "" for none."""
        ...

    def questions(self, item: Item, index: int, view: Sequence[Principle], spec: JudgeSpec) -> list[Question]:
        """The questions on the response at `index`, by the principles of one view.

        Raises:
            BadRow: the item lacks what is asked by.
        """
        ...

    def score(self, item: Item, marks: Mapping[str, float]) -> float:
        """The score of a response with these marks."""
        ...

    def hashed(self, view: Sequence[Principle], constitution: Constitution, spec: JudgeSpec) -> str:
        """Hash of what is asked, and of how marks become scores."""
        ...


class MarkingJudge(OfModel[Marking]):
    """A judge of the kinds score and rubric."""

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """As `Judge.identity`."""
        view = list(self.constitution.principles)
        hashed = self.way.hashed(view, self.constitution, self.spec)
        told = identity(self.backend, self.spec, self.way.kind, self.way.version, hashed)
        return {**told, "criteria_column": self.way.column} if self.way.column else told

    async def opinion(self, item: Item) -> Opinion:
        """As `Judge.opinion`. Where some responses have no marks the others are ranked without them; `details` says of
        which `missing`, and `error` why. With fewer than two marked ones of several there is no verdict."""
        if not item.responses:
            raise BadRow("responses", "no response to judge")
        asking = Asking(self.backend, self.spec.reasks)
        views = views_of(item, self.constitution, self.spec)
        asked = [
            (index, question)
            for index in range(len(item.responses))
            for view in views
            for question in self.way.questions(item, index, view, self.spec)
        ]
        said = await together(asking.ask(call, read) for _, (call, read) in asked)
        by_response: list[list[Marks | Missing]] = [[] for _ in item.responses]
        for (index, _), one in zip(asked, said, strict=True):
            by_response[index].append(one)
        marks = [_means([one for one in found if isinstance(one, Marks)]) for found in by_response]
        missing = {i: one for i, found in enumerate(by_response) for one in reversed(found) if isinstance(one, Missing)}
        scores = [None if i in missing else self.way.score(item, own) for i, own in enumerate(marks)]
        details: dict[str, Any] = drawn_names(views, self.spec)
        if masses := [one.mass for one in said if isinstance(one, Marks) and not math.isnan(one.mass)]:
            details["choice_mass"] = round(min(masses), 6)
        if missing:
            details["missing"] = sorted(missing)
            if len(item.responses) - len(missing) < min(2, len(item.responses)):
                return no_opinion(list(missing.values()), len(item.responses), asking.calls, details)
        criteria = sorted({criterion for own in marks for criterion in own})
        return Opinion(
            "verdict",
            scores,
            ranks_of(scores),
            criteria={c: [None if i in missing else own[c] for i, own in enumerate(marks)] for c in criteria},
            reason="\n\n".join(_reasons(by_response)),
            error="; ".join(f"response {i + 1}: {one.error}" for i, one in missing.items()),
            calls=asking.calls,
            details=details,
        )


def _means(said: Sequence[Marks]) -> dict[str, float]:
    """By criterion the mean over the questions that had it."""
    found: dict[str, list[float]] = {}
    for one in said:
        for criterion, mark in one.marks.items():
            found.setdefault(criterion, []).append(mark)
    return {criterion: sum(marks) / len(marks) for criterion, marks in found.items()}


def _reasons(by_response: Sequence[Sequence[Marks | Missing]]) -> list[str]:
    return [
        f"(response {index + 1}) {one.reason}"
        for index, found in enumerate(by_response)
        for one in found
        if isinstance(one, Marks) and one.reason
    ]
