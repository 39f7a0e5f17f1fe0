"""A limit on how long a call may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN_S = 1.0  # after which it rings again: a bare `except:` may have caught the first


class TooLong(BaseException):
    """What was called took longer than it may. No Exception: code that catches all of those must not catch this one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong within the block after so many seconds.

    By an alarm, which ends a loop or a wait of Python code wherever it is. Alarms exist in the main thread of a Unix
    process alone; elsewhere the block may take as long as it likes.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TooLong(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
