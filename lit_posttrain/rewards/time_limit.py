"""A limit on how long a call may take."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_posttrain.signals import give_back, take_over

_AGAIN_S = 1.0  # after which it rings again: a bare `except:` may have caught the first


class TooLong(BaseException):
    """What was called took longer than it may. No Exception: code that catches all of those must not catch this one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong within the block after so many seconds.

    By a signal, which ends a loop or a wait of Python code wherever it is. SIGALRM is left to rewards, many of which
    set alarms of their own: SIGVTALRM rings, sent by a thread, and by the timer of the processor's time where a call (a
    regular expression, say) does not let other threads run. Signals reach the main thread of a Unix process alone;
    elsewhere the block may take as long as it likes.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    ends = time.monotonic() + seconds
    over = threading.Event()
    thread = threading.get_ident()

    def ring(number: int, frame: Any) -> None:
        if not over.is_set() and time.monotonic() >= ends:  # many threads use up the processor's time sooner
            raise TooLong(f"it took longer than {seconds:g} s")

    def watch() -> None:
        left = seconds
        while not over.wait(left):
            if time.monotonic() >= ends:
                signal.pthread_kill(thread, signal.SIGVTALRM)
            left = max(ends - time.monotonic(), 0.0) or _AGAIN_S

    before = take_over(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN_S)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        try:
            over.set()  # until here it may still ring
        finally:
            over.set()
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            watcher.join()  # or its signal would meet the old handler, which ends the process
            give_back(signal.SIGVTALRM, before)


@contextmanager
def same_alarm() -> Iterator[None]:
    """Leave SIGALRM behind the block as it was before: an alarm that was set and not cancelled would ring in the middle
    of something else."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    handler, begun = signal.getsignal(signal.SIGALRM), time.monotonic()
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if handler is not None:  # else it is one of C code
            signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 1e-3), interval)
