"""Signal handlers of this process that forked children must not inherit.

A forked child has its parent's handlers: one that only notes "stop after this step" makes a worker of a pool immune to
`terminate()`, and who waits for the worker waits forever. So handlers that are set here are undone in forked children.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")
Handler = Callable[[int, FrameType | None], Any]

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TAKEN: defaultdict[int, list[Handler]] = defaultdict(list)  # by signal, the handlers set here, the active one last
_hooked = False
_EXIT = 128  # a shell reports 128 + the number of the signal that ended a process


class RunStopped(BaseException):
    """A signal, `number`, asked a run to stop in the middle of work that is discarded. It is no Exception, because
    rewards catch those."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Terminated(SystemExit):
    """A signal ended the process before there was anything to save. code: the exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(_EXIT + number)


def take_over(number: int, handler: Handler) -> Any:
    """As `signal.signal`, but children that are forked before `give_back` do not inherit the handler. In the main
    thread only. Returns the previous handler."""
    global _hooked
    if not _hooked:
        os.register_at_fork(after_in_child=_be_an_ordinary_process)
        _hooked = True
    _TAKEN[number].append(handler)
    return signal.signal(number, handler)


def give_back(number: int, previous: Any) -> None:
    """Restore the handler that `take_over` returned."""
    signal.signal(number, previous)
    del _TAKEN[number][-1:]  # a copy that was forked in between has none


def handled_here(number: int) -> bool:
    """True if a signal may be handled here: not SIGHUP if it is ignored, as under `nohup`."""
    return number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN


def alive(process: int) -> bool:
    """True if a process with this id exists on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and belongs to someone else
        return True
    return True


def leave_closed_terminal() -> None:
    """Discard further output if its terminal is closed, because printing to it would fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.write("\n")
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _be_an_ordinary_process() -> None:
    """Restore the interpreter's handlers in a forked child: for the signals that stop a run whatever their handlers
    are, Lightning's included, for others only handlers set here. A handler that somebody set for an alarm stays."""
    if not any(_TAKEN.values()):
        return
    for number in {*STOPS, *_TAKEN}:
        handler = signal.getsignal(number)
        if callable(handler) and (number in STOPS or handler in _TAKEN[number]):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _TAKEN.clear()


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and SIGHUP, so that what a run has begun before its first step is removed. While it
    trains, `GracefulInterrupt` saves instead."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if handled_here(number)]
    previous = {number: take_over(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            give_back(number, handler)


def run_terminable(work: Coroutine[Any, Any, Result]) -> Result:
    """As `asyncio.run`, and SIGTERM and SIGHUP cancel the work, as SIGINT does there. The exception that `terminable`
    raises could come anywhere inside of the event loop, and leave it waiting for ever.

    Raises:
        Terminated: one of them came.
    """
    import asyncio  # takes a tenth of a second, which most commands need not wait

    async def cancelled_by_signals() -> Result:
        task, came = asyncio.ensure_future(work), list[int]()

        def stop(number: int) -> None:
            came.append(number)
            task.cancel()

        for number in before:
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        try:
            return await task
        except asyncio.CancelledError:
            if came:
                raise Terminated(came[0]) from None
            raise

    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP) if handled_here(number)}
    try:
        return asyncio.run(cancelled_by_signals())
    finally:
        for number, handler in before.items():  # the loop leaves the default ones
            signal.signal(number, handler)
