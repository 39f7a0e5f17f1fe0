"""One event loop for all calls of async rewards: a client, a lock or a semaphore that a reward keeps belongs to the
loop in which it was first used."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Self, TypeVar

from lit_posttrain.rewards.time_limit import TooLong

Found = TypeVar("Found")

_GRACE_S = 0.5  # for an async reward to be cancelled, and for a loop to answer


class EventLoop:
    """An event loop in a thread of its own, since in a notebook the main thread has one. It starts at first use."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def result(self, awaitable: Awaitable[Found], timeout: float | None) -> Found:
        """The result of an awaitable, or its exception. timeout: None for one that ends by itself.

        Raises:
            TooLong: it took longer than `timeout` seconds.
        """
        loop = self._started()
        future = asyncio.run_coroutine_threadsafe(_limited(awaitable, timeout), loop)
        try:
            return future.result(None if timeout is None else timeout + _GRACE_S)
        except TimeoutError as problem:
            if future.done():  # the awaitable raised it
                raise
            raise TooLong(f"it took longer than {timeout:g} s, and blocks") from problem
        finally:
            if not future.done():  # the time limit or a signal has ended the wait
                future.cancel()
                self._loop = None
                if _answers(loop):
                    self._loop = loop

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            weakref.finalize(self, _stop, self._loop)
            threading.Thread(target=_run, args=[self._loop], daemon=True).start()
        return self._loop


async def _limited(awaitable: Awaitable[Found], timeout: float | None) -> Found:
    try:
        async with asyncio.timeout(timeout) as limit:
            return await awaitable
    except TimeoutError as problem:
        if not limit.expired():
            raise
        raise TooLong(f"it took longer than {timeout:g} s") from problem


def _answers(loop: asyncio.AbstractEventLoop) -> bool:
    """False if a coroutine blocks the loop. Nobody waits for its thread, which ends with the process."""
    answer = threading.Event()
    loop.call_soon_threadsafe(answer.set)
    return answer.wait(_GRACE_S)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped. A sys.exit within a task ends `run_forever`; the task keeps it for who awaits
    it."""
    stopped = False
    while not stopped:
        with suppress(SystemExit):
            loop.run_forever()
            stopped = True
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(loop.stop)
