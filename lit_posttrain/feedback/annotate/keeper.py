"""Keeps decisions: checks each against the board, and writes those that come at the same time together.

To wait for the disk takes most of the time of a decision. Those that come meanwhile wait for it once, all together, so
that many annotators wait hardly longer than one.
"""

from __future__ import annotations

import asyncio

from starlette.concurrency import run_in_threadpool

from lit_posttrain.data.feedback.log import FeedbackLog
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.annotate.board import Board, Conflict

_Waiting = tuple[Decision, "asyncio.Future[None]"]


class Keeper:
    """Writes to one file, of the decisions on one board."""

    def __init__(self, board: Board, log: FeedbackLog) -> None:
        self.board, self.log = board, log
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None

    async def keep(self, decision: Decision) -> None:
        """Return once a decision is on the disk and the board. One that is there already changes nothing.

        Raises:
            Conflict: it cannot stand beside the earlier ones.
            PostTrainError: it cannot be written.
        """
        kept = asyncio.get_running_loop().create_future()
        self._waiting.append((decision, kept))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await kept

    async def _write(self) -> None:
        while self._waiting:
            together = self._next()
            try:
                fresh = await run_in_threadpool(self.log.append_all, [decision for decision, _ in together])
            except Exception as problem:  # whatever it is, those who wait are told
                for _, kept in together:
                    _answer(kept, problem)
                continue
            for (decision, kept), is_new in zip(together, fresh, strict=True):
                if is_new:
                    self.board.add(decision)
                _answer(kept)

    def _next(self) -> list[_Waiting]:
        """Of each annotator the decision that waits longest: the next one is checked once this one stands."""
        chosen: dict[str, _Waiting] = {}
        rest: list[_Waiting] = []
        for decision, kept in self._waiting:
            if decision.annotator in chosen:
                rest.append((decision, kept))
            elif decision.id in self.log:
                _answer(kept)
            else:
                try:
                    self.board.check(decision)
                    chosen[decision.annotator] = (decision, kept)
                except Conflict as problem:
                    _answer(kept, problem)
        self._waiting = rest
        return list(chosen.values())


def _answer(kept: asyncio.Future[None], problem: Exception | None = None) -> None:
    if kept.done():  # the request was cancelled, as the browser has gone
        return
    if problem is None:
        kept.set_result(None)
    else:
        kept.set_exception(problem)
