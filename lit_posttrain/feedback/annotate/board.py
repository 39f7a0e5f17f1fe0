"""Who decides what: which item an annotator is given next, what they have decided, and what they take back.

Everything is rebuilt from the file of decisions, apart from who looks at what at the moment.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.annotate.tasks import Task

_HELD_S = 30 * 60  # for so long nobody else is given an item that somebody looks at
_ROUNDING = 1e-6  # of floats: a fifth of 40 is 8
_RECENT = 20  # decisions that the pace is measured on


class Conflict(Exception):
    """A decision that cannot stand beside what was decided before. The message is shown to the annotator."""


@dataclass(frozen=True)
class Progress:
    """Of one annotator. left: items that they may still be given. pace_s: median seconds of their last decisions."""

    done: int
    left: int
    pace_s: float | None


class Board:
    """Items, and the decisions on them that stand."""

    def __init__(
        self,
        tasks: Sequence[Task],
        decisions: Iterable[Decision] = (),
        overlap: float = 0.0,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            tasks: Items with known answers (`gold`) among them: everybody is given these.
            decisions: Those of earlier sessions; on other items they are passed over.
            overlap: How many people beyond the first are shown an item on average: 0.2 shows a fifth of the items to
                two people, 1.5 half of them to two and half to three.
            seed: Of the order of items and of responses.
            clock: Seconds that pass.
        """
        self.tasks = {task.id: task for task in tasks}
        self.changes = 0  # how often something was added
        self._seed, self._clock = seed, clock
        plain = [task.id for task in tasks if task.gold is None]
        random.Random(f"overlap {seed}").shuffle(plain)
        whole, part = int(overlap), math.ceil((overlap - int(overlap)) * len(plain) - _ROUNDING)
        self._wanted = {one: 1 + whole + (n < part) for n, one in enumerate(plain)}
        self._shared = [one for one in plain if self._wanted[one] > 1]
        self._orders: dict[str, list[str]] = {}
        self._wanting = set(plain)  # items on which a decision is missing
        self._verdicts: defaultdict[str, set[str]] = defaultdict(set)  # item -> annotators
        self._by: defaultdict[str, dict[str, Decision]] = defaultdict(dict)  # annotator -> item -> decision
        self._taken_back: dict[str, Decision] = {}  # annotator -> their last one
        self._held: dict[str, tuple[str, float]] = {}  # annotator -> item, since when
        for one in decisions:
            if one.item in self.tasks and one.judge is None:
                self.add(one)

    def decisions(self) -> list[Decision]:
        """Those that stand."""
        return [one for by_item in self._by.values() for one in by_item.values()]

    def next(self, annotator: str) -> Task | None:
        """The item that an annotator looks at from now on: the one that they looked at before, if it is still open."""
        held, _ = self._held.get(annotator, ("", 0.0))
        order = self._order(annotator)
        taken = self._taken(annotator)
        found = next((one for one in ([held, *order] if held else order) if self._open(one, annotator, taken)), None)
        if found is None:
            self._held.pop(annotator, None)
            return None
        self._held[annotator] = (found, self._clock())
        return self.tasks[found]

    def progress(self, annotator: str) -> Progress:
        """How far an annotator is."""
        mine = list(self._by[annotator].values())
        times = [one.seconds for one in mine[-_RECENT:] if one.seconds is not None]
        decided, taken = self._by[annotator], self._taken(annotator)
        known = len(self.tasks) - len(self._wanted)
        left = len(self._wanting) + known - sum(one in self._wanting or one not in self._wanted for one in decided)
        left -= sum(one not in decided and not self._open(one, annotator, taken) for one in taken)
        return Progress(len(mine), left, statistics.median(times) if times else None)

    def last(self, annotator: str) -> Decision | None:
        """The decision that an annotator can take back."""
        return next(reversed(self._by[annotator].values()), None)

    def missing(self) -> int:
        """Decisions that are still wanted of anybody, apart from those on items with a known answer."""
        return sum(max(0, wanted - len(self._verdicts[one])) for one, wanted in self._wanted.items())

    def check(self, decision: Decision) -> None:
        """Refuse a decision that cannot be added.

        Raises:
            Conflict: the annotator has decided on the item before, or takes back what does not stand.
        """
        mine = self._by[decision.annotator]
        if decision.outcome == "undone":
            if decision.item not in mine or mine[decision.item].id != decision.undoes:
                raise Conflict("this decision was taken back already")
        elif decision.item in mine:
            raise Conflict("you have decided on this item already, in another window perhaps")

    def add(self, decision: Decision) -> None:
        """Let a decision stand, or take one back: its item is then the one that the annotator looks at."""
        self.changes += 1
        mine = self._by[decision.annotator]
        if decision.outcome == "undone":
            if (before := mine.pop(decision.item, None)) is not None:
                self._taken_back[decision.annotator] = before
            self._verdicts[decision.item].discard(decision.annotator)
            self._count(decision.item)
            self._held[decision.annotator] = (decision.item, self._clock())
            return
        mine[decision.item] = decision
        if decision.outcome == "verdict":
            self._verdicts[decision.item].add(decision.annotator)
            self._count(decision.item)
        if self._held.get(decision.annotator, ("",))[0] == decision.item:
            del self._held[decision.annotator]

    def taken_back(self, annotator: str) -> Decision | None:
        """The decision that an annotator has taken back last, since the server was started."""
        return self._taken_back.get(annotator)

    def order(self, annotator: str, task: Task) -> list[int]:
        """The order in which an annotator is shown an item's responses."""
        places = list(range(len(task.responses)))
        random.Random(f"responses {self._seed} {annotator} {task.id}").shuffle(places)
        return places

    def _count(self, item: str) -> None:
        if item in self._wanted:
            missing = len(self._verdicts[item]) < self._wanted[item]
            (self._wanting.add if missing else self._wanting.discard)(item)

    def _taken(self, annotator: str) -> Counter[str]:
        """How many others look at an item now, of the items on which a decision is missing."""
        since = self._clock() - _HELD_S
        held = (item for who, (item, start) in self._held.items() if who != annotator and start > since)
        return Counter(item for item in held if item in self._wanting)

    def _open(self, item: str, annotator: str, taken: Counter[str]) -> bool:
        """True if an annotator may be given an item now."""
        if item in self._by[annotator]:
            return False
        if item not in self._wanting:
            return item not in self._wanted  # one with a known answer
        return not taken[item] or len(self._verdicts[item]) + taken[item] < self._wanted[item]

    def _order(self, annotator: str) -> list[str]:
        """All items: those for one person and those with known answers in an order of the annotator's own, those for
        several in the order of all, so that several get to the same ones; each kind spread evenly."""
        if annotator not in self._orders:
            own = random.Random(f"items {self._seed} {annotator}")
            single = [one for one, wanted in self._wanted.items() if wanted == 1]
            gold = [one for one in self.tasks if one not in self._wanted]
            own.shuffle(single)
            own.shuffle(gold)
            keyed = [
                ((place + 0.5) / len(kind), one)
                for kind in (self._shared, single, gold)
                for place, one in enumerate(kind)
            ]
            self._orders[annotator] = [one for _, one in sorted(keyed)]
        return self._orders[annotator]
