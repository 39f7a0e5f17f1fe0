"""How annotators get on and agree, for the organiser's page."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations, pairwise
from typing import Any

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.agreement.report import summary
from lit_posttrain.feedback.annotate.tasks import Task

Ranks = Sequence[int | None]
_BREAK_S = 600
_RESAMPLES = 200  # of the intervals, which are computed again and again


@dataclass(frozen=True)
class Figures:
    """decisions: those that stand. missing: how many are still wanted."""

    decisions: Sequence[Decision]
    tasks: Sequence[Task]
    missing: int

    def all(self) -> dict[str, Any]:
        """Figures as JSON: of the whole, by annotator, of every two, and of all people. Agreement and biases are those
        of `lit-posttrain agree`."""
        by: defaultdict[str, list[Decision]] = defaultdict(list)
        for one in self.decisions:
            by[one.annotator].append(one)
        known = {task.id: task.gold for task in self.tasks if task.gold is not None}
        found = summary(self.decisions, _RESAMPLES)
        votes = {one["name"]: one for one in found["annotators"]}
        return {
            "items": len(self.tasks) - len(known),
            "gold": len(known),
            "decisions": len(self.decisions),
            "missing": self.missing,
            "annotators": [
                {
                    "name": name,
                    **_of_one(made, known),
                    "ties": votes[name]["tie"] / votes[name]["votes"] if votes[name]["votes"] else None,
                    "first_position": found["bias"][name]["first_position"],
                    "longer": found["bias"][name]["longer"],
                }
                for name, made in sorted(by.items())
            ],
            "people": found["people"],
            "between": found["between"],
        }


def _of_one(made: Sequence[Decision], known: Mapping[str, Ranks]) -> dict[str, Any]:
    times = [one.seconds for one in made if one.seconds is not None]
    checked = [right for one in made if one.item in known for right in _as_known(one.ranks, known[one.item])]
    return {
        "decisions": len(made),
        "skipped": sum(one.outcome == "skipped" for one in made),
        "median_s": statistics.median(times) if times else None,
        "per_hour": _per_hour(made),
        "gold_right": sum(checked) / len(checked) if checked else None,
        "gold_pairs": len(checked),
    }


def _as_known(said: Ranks | None, known: Ranks) -> Iterator[bool]:
    """For every pair of which it is known which is better: True if the annotator says so."""
    if said is None:  # skipped
        return
    for (mine, right), (my_other, other) in combinations(zip(said, known, strict=True), 2):
        if right is not None and other is not None and right != other:
            yield (
                mine is not None and my_other is not None and mine != my_other and (mine < my_other) == (right < other)
            )


def _per_hour(made: Sequence[Decision]) -> float | None:
    """Decisions an hour, breaks left out."""
    times = sorted(datetime.fromisoformat(one.time) for one in made if one.time)
    gaps = [(late - early).total_seconds() for early, late in pairwise(times)]
    working = [gap for gap in gaps if gap <= _BREAK_S]
    return 3600 * len(working) / sum(working) if sum(working) > 0 else None
