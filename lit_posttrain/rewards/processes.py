"""Processes that rewards start: those of a call that was cut short are ended, and none outlives the run."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_posttrain.rewards.time_limit import TooLong, same_alarm
from lit_posttrain.signals import RunStopped

Process = tuple[int, str]  # id, and when it started: ids are used again

_ADOPT = 36  # Linux's PR_SET_CHILD_SUBREAPER
_HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")  # which end with this process


class RewardProcesses:
    """Knows what was started during calls of a reward. Only where the system has a /proc (Linux).

    From the first call to the end of the run this process takes in those whose own parent has ended (`sleep 60 &`, or
    what a shell ran that was killed by a timeout), which would else be children of process 1.
    """

    def __init__(self) -> None:
        self._started: set[Process] = set()
        self._stuck: set[Process] = set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note what the block starts, and end it if the block takes too long or the run stops: who would have waited
        for it or ended it does not get to. What an earlier call has started may be used by later ones, and is ended
        with the run. A copy of this process that leaves the block, of an `os.fork()` without an exit, ends there: it
        would train on beside this one."""
        _adopt(True)
        before, own = _descendants(), os.getpid()
        try:
            with same_alarm():
                yield
        except (TooLong, RunStopped):
            _end(_descendants() - before)
            self._stuck |= self._started & before
            raise
        finally:
            if os.getpid() != own:
                told = b"a reward has forked a copy of the run (os.fork), which ends here: end it with os._exit\n"
                os.write(2, told)
                os._exit(1)
            self._started |= _descendants() - before

    def end_stuck(self) -> None:
        """End what a call that was cut short has used: at its end the interpreter would wait for it."""
        _end(self._stuck & _descendants())
        self._stuck = set()

    def end(self) -> None:
        """End all that rewards have started and that still runs. Only now are those waited for that have ended: their
        exit statuses may have been of use to whoever started them."""
        ours = self._started & _descendants()
        _end(ours)
        for number, _ in ours:
            with suppress(ChildProcessError):  # a child of one of them
                os.waitpid(number, os.WNOHANG)
        _adopt(False)


def _adopt(yes: bool) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_ADOPT, int(yes), 0, 0, 0)


def _children(parent: int) -> list[int]:
    with suppress(OSError):
        found = [file.read_text().split() for file in Path(f"/proc/{parent}/task").glob("*/children")]
        return [int(child) for some in found for child in some]
    return []


def _stat(process: int) -> list[str]:
    """What /proc/PID/stat says behind the name: the state, the parent, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _descendants() -> set[Process]:
    """The children of this process, their children, and so on."""
    found: set[Process] = set()
    ahead = [os.getpid()]
    while ahead:
        for child in _children(ahead.pop()):
            ahead.append(child)
            with suppress(OSError):
                if not any(name in Path(f"/proc/{child}/cmdline").read_bytes() for name in _HELPERS):
                    found.add((child, _stat(child)[19]))
    return found


def _end(processes: set[Process]) -> None:
    for number, _ in processes:
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)
