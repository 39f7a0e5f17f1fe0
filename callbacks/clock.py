"""A stopwatch for the time that training takes without validation."""

from __future__ import annotations

import time


class TrainingClock:
    """Seconds since `restart`, without the time between `pause` and `go_on`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin at zero."""
        self._start, self._left_out = time.perf_counter(), 0.0
        self._pause: float | None = None

    def pause(self) -> None:
        """Stop counting."""
        self._pause = time.perf_counter()

    def go_on(self) -> None:
        """Count again."""
        if self._pause is not None:
            self._left_out += time.perf_counter() - self._pause
            self._pause = None

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        now = time.perf_counter() if self._pause is None else self._pause
        return now - self._start - self._left_out
