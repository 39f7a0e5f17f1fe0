"""A limit on how long a call may take."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_posttrain.runs.signals import give_back, take_over

_AGAIN_S = 1.0  # after which it rings again: a bare `except:` may have caught the first


class TooLong(BaseException):
    """What was called took longer than it may. No Exception: code that catches all of those must not catch this one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong within the block after so many seconds.

    By a signal, which ends a loop or a wait of Python code wherever it is. SIGALRM is left to rewards, many of which
    set alarms of their own: SIGVTALRM rings, sent by a thread, and by the timer of the processor's time where a call (a
    regular expression, say) does not let other threads run. Blocks may stand in one another. Signals reach the main
    thread of a Unix process alone; elsewhere the block may take as long as it likes.
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
    """Leave no alarm behind the block: one that was set and not cancelled would ring in the middle of something else.

    A handler of SIGALRM that the block sets stays: a reward may set it once, and an alarm in every call. Within the
    block an alarm without any raises TimeoutError, where by default it would end the process. An alarm that somebody
    else has set before waits until the block is over, and has its handler then.
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
