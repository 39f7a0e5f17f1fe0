"""How annotators get on and agree, for the organiser's page."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations, pairwise
from typing import Any

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.annotate.tasks import Task


@dataclass(frozen=True)
class Figures:
    """decisions: those that stand. missing: decisions that are still wanted."""

    decisions: Sequence[Decision]
    tasks: Sequence[Task]
    missing: int

    def all(self) -> dict[str, Any]:
        """Figures as JSON: of the whole, by annotator, and of every two annotators who have ranked the same items."""
        by: defaultdict[str, list[Decision]] = defaultdict(list)
        for one in self.decisions:
            by[one.annotator].append(one)
        known = {task.id: task.gold for task in self.tasks if task.gold is not None}
        return {
            "items": len(self.tasks) - len(known),
            "gold": len(known),
            "decisions": len(self.decisions),
            "missing": self.missing,
            "annotators": [{"name": name, **_of_one(made, known)} for name, made in sorted(by.items())],
            "summary": [],
            "agreement": [
                {"first": one, "second": other, **found}
                for one, other in combinations(sorted(by), 2)
                if (found := _agreement(by[one], by[other]))
            ],
        }


def _of_one(made: Sequence[Decision], known: dict[str, list[int | None]]) -> dict[str, Any]:
    verdicts = [one for one in made if one.outcome == "verdict"]
    times = [one.seconds for one in made if one.seconds is not None]
    ranked = [one for one in verdicts if one.ranks is not None]
    pairs = [ranks for one in ranked for ranks in _pairs(one.ranks)]
    first = [_first_shown_is_best(one) for one in ranked]
    checked = [right for one in ranked if one.item in known for right in _as_known(one.ranks, known[one.item])]
    return {
        "decisions": len(made),
        "skipped": len(made) - len(verdicts),
        "median_s": statistics.median(times) if times else None,
        "per_hour": _per_hour(made),
        "ties": _share([a == b for a, b in pairs]),
        "first_shown_best": _share([one for one in first if one is not None]),
        "gold_right": _share(checked),
        "gold_pairs": len(checked),
        "last": max((one.time for one in made), default=None),
    }


def _agreement(one: Sequence[Decision], other: Sequence[Decision]) -> dict[str, Any] | None:
    """The share of pairs of responses on which two annotators say the same: better, worse or tied."""
    ranks = {decision.item: decision.ranks for decision in other if decision.ranks is not None}
    same: list[bool] = []
    items = 0
    for decision in one:
        theirs = ranks.get(decision.item)
        if decision.ranks is None or theirs is None:
            continue
        both = [
            _sign(decision.ranks[i], decision.ranks[j]) == _sign(theirs[i], theirs[j])
            for i, j in combinations(range(len(theirs)), 2)
            if None not in (decision.ranks[i], decision.ranks[j], theirs[i], theirs[j])
        ]
        same += both
        items += bool(both)
    return {"items": items, "pairs": len(same), "agreement": _share(same)} if same else None


def _pairs(ranks: Sequence[int | None] | None) -> Iterator[tuple[int, int]]:
    for one, other in combinations(ranks or [], 2):
        if one is not None and other is not None:
            yield one, other


def _first_shown_is_best(decision: Decision) -> bool | None:
    """True if what stood first is alone the best; None if nothing is alone the best. Without a bias for what comes
    first the share is 1/K."""
    ranks = [rank for rank in decision.ranks or [] if rank is not None]
    if not ranks or not decision.order or ranks.count(min(ranks)) > 1:
        return None
    return (decision.ranks or [])[decision.order[0]] == min(ranks)


def _as_known(ranks: Sequence[int | None] | None, known: Sequence[int | None]) -> Iterator[bool]:
    """For every pair of which it is known which is better: True if the annotator says so."""
    for i, j in combinations(range(len(known)), 2):
        if None not in (known[i], known[j]) and known[i] != known[j]:
            mine = (ranks or [None] * len(known))[i], (ranks or [None] * len(known))[j]
            yield None not in mine and _sign(*mine) == _sign(known[i], known[j])


def _sign(one: int | None, other: int | None) -> int:
    a, b = one or 0, other or 0
    return (a > b) - (a < b)


def _share(said: Sequence[bool]) -> float | None:
    return sum(said) / len(said) if said else None


def _per_hour(made: Sequence[Decision]) -> float | None:
    """Decisions an hour, breaks of over ten minutes left out."""
    times = sorted(datetime.fromisoformat(one.time) for one in made if one.time)
    gaps = [(late - early).total_seconds() for early, late in pairwise(times)]
    working = [gap for gap in gaps if gap <= 600]
    return 3600 * len(working) / sum(working) if sum(working) > 0 else None
