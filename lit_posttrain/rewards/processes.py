"""Processes that rewards start: those of a call that was cut short are ended, and none outlives the run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_posttrain.rewards.time_limit import TooLong
from lit_posttrain.signals import RunStopped

Process = tuple[int, str]  # id, and when it started: ids are used again

_HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")  # which end with this process


class RewardProcesses:
    """Knows what was started during calls of a reward. Only where the system has a /proc (Linux)."""

    def __init__(self) -> None:
        self._started: set[Process] = set()
        self._stuck: set[Process] = set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note what the block starts, and end it if the block takes too long or the run stops: who would have waited
        for it or ended it does not get to. What an earlier call has started may be used by later ones, and is ended
        with the run."""
        before = _descendants()
        try:
            yield
        except (TooLong, RunStopped):
            _end(_descendants() - before)
            self._stuck |= self._started & before
            raise
        finally:
            self._started |= _descendants() - before

    def end_stuck(self) -> None:
        """End what a call that was cut short has used: at its end the interpreter would wait for it."""
        _end(self._stuck & _descendants())
        self._stuck = set()

    def end(self) -> None:
        """End all that rewards have started and that still runs."""
        _end(self._started & _descendants())


def _descendants() -> set[Process]:
    """The children of this process, their children, and so on."""
    found: set[Process] = set()
    ahead = [os.getpid()]
    while ahead:
        parent = ahead.pop()
        with suppress(OSError):
            for file in Path(f"/proc/{parent}/task").glob("*/children"):
                for child in map(int, file.read_text().split()):
                    ahead.append(child)
                    with suppress(OSError):
                        if not any(name in Path(f"/proc/{child}/cmdline").read_bytes() for name in _HELPERS):
                            _, _, fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")
                            found.add((child, fields.split()[19]))
    return found


def _end(processes: set[Process]) -> None:
    for number, _ in processes:
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)
