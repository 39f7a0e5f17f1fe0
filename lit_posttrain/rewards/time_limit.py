"""A limit on how long a call may take."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_posttrain.runs.signals import give_back, take_over

_AGAIN_S = 1.0  # until it is raised again: a bare `except:` may have caught the first


class TooLong(BaseException):
    """A call took too long. Not an Exception, so that code that catches every Exception does not catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in the block after this many seconds.

    It is raised by a signal, which interrupts any Python code. SIGALRM is left to rewards, many of which use it; this
    is SIGVTALRM, sent by a thread, and by the timer of CPU time if a call, such as a regular expression, does not let
    other threads run. Blocks may be nested. Signals are handled only in the main thread of a Unix process; elsewhere
    there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    ends = time.monotonic() + seconds
    over = threading.Event()
    thread = threading.get_ident()

    def ring(number: int, frame: Any) -> None:
        if not over.is_set() and time.monotonic() >= ends:  # several threads use CPU time faster
            raise TooLong(f"it took longer than {seconds:g} s")

    def watch() -> None:
        left = seconds
        while not over.wait(left):
            if time.monotonic() >= ends:
                signal.pthread_kill(thread, signal.SIGVTALRM)
            left = max(ends - time.monotonic(), 0.0) or _AGAIN_S

    before = take_over(signal.SIGVTALRM, ring)
    around, _ = signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN_S)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        try:
            over.set()  # until here it may still ring
        finally:
            over.set()
            signal.setitimer(signal.ITIMER_VIRTUAL, _AGAIN_S if around else 0, _AGAIN_S)  # of a block around this one
            watcher.join()  # or its signal would meet the old handler, which ends the process
            give_back(signal.SIGVTALRM, before)


@contextmanager
def same_alarm() -> Iterator[None]:
    """Cancel alarms (SIGALRM) that the block leaves behind: they would interrupt something else.

    A handler of SIGALRM that the block sets stays: a reward may set it once, and an alarm in every call. In the block
    an alarm without a handler raises TimeoutError; by default it would end the process. An alarm that was set before
    waits until the block has ended, and then finds its own handler.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    handler, begun = signal.getsignal(signal.SIGALRM), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    if handler == signal.SIG_DFL:
        take_over(signal.SIGALRM, _no_handler)
    try:
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)  # until here it may still ring
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            now = signal.getsignal(signal.SIGALRM)
            behind = handler if left or now in (_no_handler, None) else now  # None: C code has set it
            if handler == signal.SIG_DFL:
                give_back(signal.SIGALRM, behind)
            elif behind is not None:
                signal.signal(signal.SIGALRM, behind)
            if left:
                signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 1e-3), interval)


def _no_handler(number: int, frame: Any) -> None:
    raise TimeoutError("an alarm rang that has no handler: call signal.signal(signal.SIGALRM, ...) before signal.alarm")
