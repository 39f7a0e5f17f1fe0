"""Judges many items at once and keeps every decision as soon as it is made."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.feedback.log import FeedbackLog, read_decisions
from lit_posttrain.data.feedback.record import Decision, now
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.budget import BudgetSpent
from lit_posttrain.judges.judge import Judge, decision, decision_id


@dataclass
class Judged:
    """What became of the items. outcomes: number of new decisions by outcome (verdict, unparsable, failed). known:
    items that the file had a decision on; known_failed: those among them whose call had failed. left_out: the
    `file:line` of items that cannot be judged, by reason. error: why the last item without a verdict has none. stopped:
    what ended the run before its end."""

    outcomes: Counter[str] = field(default_factory=Counter)
    known: int = 0
    known_failed: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    error: str = ""
    stopped: PostTrainError | None = None

    @property
    def ended(self) -> int:
        """Items that are done with."""
        return self.outcomes.total() + self.known + sum(map(len, self.left_out.values()))


async def judge_all(
    items: Sequence[Item],
    judge: Judge,
    log: FeedbackLog,
    at_once: int,
    judged: Judged,
    retry_failed: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Judge items in their order, `at_once` at a time, and append the decisions as they come. An item of which the log
    has a decision by the same judge is not judged again.

    judged: is counted in, so that the counts are there too if the task is cancelled. What stops the run, such as a
    spent budget or a wrong key, is kept in `judged.stopped`. retry_failed: judge again where the call had failed, and
    undo the decision that says so. progress: is called with the number of further items done.
    """
    waiting = _waiting(items, judge, log, retry_failed, judged, progress)

    async def work() -> None:
        for item, repetition in waiting:
            begun = time.monotonic()
            try:
                opinion = await judge.opinion(item)
            except BadRow as problem:
                judged.left_out.setdefault(str(problem), []).append(item.source)
            except BudgetSpent as problem:  # who is under way may have paid already
                judged.stopped = problem
                return
            else:
                made = decision(item, judge, opinion, repetition, round(time.monotonic() - begun, 3))
                replaced = decision_id(item, judge, repetition - 1) if repetition else None
                # not in a thread: a task that is cancelled meanwhile would not count it
                if _keep(log, made, replaced):
                    judged.outcomes[made.outcome] += 1
                    judged.error = made.error if made.outcome != "verdict" else judged.error
                else:  # another process was faster
                    judged.known += 1
            progress(1)
            if judged.stopped is not None:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(items))):
                group.create_task(work())
    except* PostTrainError as problems:
        judged.stopped = next(_flat(problems))


def _waiting(
    items: Sequence[Item],
    judge: Judge,
    log: FeedbackLog,
    retry_failed: bool,
    judged: Judged,
    progress: Callable[[int], None],
) -> Iterator[tuple[Item, int]]:
    """Items without a decision, each with the number of decisions on it that have failed."""
    failed = {one.id for one in read_decisions(log.path)[0] if one.outcome == "failed"}
    for item in items:
        repetition, last = 0, ""
        while (made := decision_id(item, judge, repetition)) in log:
            repetition, last = repetition + 1, made
        if last and not (retry_failed and last in failed):
            judged.known += 1
            judged.known_failed += last in failed
            progress(1)
        else:
            yield item, repetition


def _keep(log: FeedbackLog, made: Decision, replaced: str | None) -> bool:
    """Append a decision; False if it is there already. replaced: the id of the one that it takes the place of, which
    is undone with it: both are written, or none."""
    undone = [
        Decision(f"{one}-undone", made.item, made.annotator, outcome="undone", undoes=one, time=now())
        for one in ([] if replaced is None else [replaced])
    ]
    return log.append_all([made, *undone])[0]


def _flat(problems: BaseExceptionGroup[PostTrainError]) -> Iterator[PostTrainError]:
    for one in problems.exceptions:
        yield from _flat(one) if isinstance(one, BaseExceptionGroup) else [one]
