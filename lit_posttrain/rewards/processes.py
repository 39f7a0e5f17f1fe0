"""Processes that rewards start: those of a call that was cut short are ended, and none outlives the run."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from lit_posttrain.rewards.time_limit import TooLong, same_alarm
from lit_posttrain.runs.signals import RunStopped

Process = tuple[int, int]  # id, and when it started: ids are used again


class Seen(NamedTuple):
    """What /proc says of a process: the id of its parent, and whether it has ended and waits to be asked how."""

    parent: int
    ended: bool


_ADOPT = 36  # Linux's PR_SET_CHILD_SUBREAPER
_MOST_ENDED = 100  # processes whose exit status is kept, of those that may be waited for
_HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")  # which end with this process


class RewardProcesses:
    """Knows what was started during calls of a reward. Only where the system has a /proc (Linux).

    From the first call to the end of the run this process takes in those whose own parent has ended (`sleep 60 &`, or
    what a shell ran that was killed by a timeout), which would else be children of process 1.
    """

    def __init__(self) -> None:
        self._started: set[Process] = set()
        self._stuck: set[Process] = set()
        self._of_others: set[Process] = set()  # of those started: what another process than this one has started

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note what the block starts, and end it if the block takes too long or the run stops: who would have waited
        for it or ended it does not get to. What an earlier call has started may be used by later ones, and is ended
        with the run. A copy of this process that leaves the block, of an `os.fork()` without an exit, ends there: it
        would train on beside this one."""
        _adopt(True)
        before = _descendants()
        self._note(before, ())
        try:
            with _in_this_process_only(), same_alarm():
                yield
        except (TooLong, RunStopped):
            _end(_descendants().keys() - before.keys())
            self._stuck |= self._started & before.keys()
            raise
        finally:
            found = _descendants()
            self._note(found, found.keys() - before.keys())
            self._forget_ended(found)

    def _note(self, found: dict[Process, Seen], fresh: Iterable[Process]) -> None:
        """Of what runs now, know what rewards have started: what is fresh, and what was started by such a process."""
        self._started = (self._started | set(fresh)) & found.keys()
        numbers = {number for number, _ in self._started}
        for process, (parent, _) in found.items():  # parents first
            if parent in numbers:
                self._started.add(process)
                numbers.add(process[0])
        own = os.getpid()
        self._of_others |= {process for process in self._started if found[process].parent != own}
        self._of_others &= self._started

    def _forget_ended(self, found: dict[Process, Seen]) -> None:
        """Ask those that have ended for their exit status, or the system runs out of process ids. Whoever started them
        may want it: only of what this process has not started itself, and of the oldest where they are many. (Whose
        own parent has ended before it was seen looks like started here.)"""
        own = os.getpid()
        ended = [process for process in self._started if found[process] == Seen(own, True)]
        orphans = [process for process in ended if process in self._of_others]
        others = sorted(set(ended) - set(orphans), key=lambda process: process[1])
        for number, _ in [*orphans, *others[:-_MOST_ENDED]]:
            with suppress(ChildProcessError):
                os.waitpid(number, os.WNOHANG)

    def end_stuck(self) -> None:
        """End what a call that was cut short has used: at its end the interpreter would wait for it."""
        _end(self._stuck & _descendants().keys())
        self._stuck = set()

    def end(self) -> None:
        """End all that rewards have started and that still runs, and wait for those that have ended."""
        self._note(_descendants(), ())
        _end(self._started)
        for number, _ in self._started:
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


def _descendants() -> dict[Process, Seen]:
    """The children of this process, their children, and so on; parents come before their children."""
    found: dict[Process, Seen] = {}
    ahead = [os.getpid()]
    while ahead:
        parent = ahead.pop()
        for child in _children(parent):
            ahead.append(child)
            with suppress(OSError):
                if not any(name in Path(f"/proc/{child}/cmdline").read_bytes() for name in _HELPERS):
                    stat = _stat(child)
                    found[child, int(stat[19])] = Seen(int(stat[1]), stat[0] == "Z")
    return found


def _end(processes: Iterable[Process]) -> None:
    for number, _ in processes:
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)


@contextmanager
def _in_this_process_only() -> Iterator[None]:
    """End a copy of this process that leaves the block: by `sys.exit` with its status, else with a failure."""
    own = os.getpid()
    _flush()  # or a copy writes it once more
    try:
        yield
    except SystemExit as leaving:
        if os.getpid() != own:
            _leave(leaving)
        raise
    finally:
        if os.getpid() != own:
            told = b"a reward has forked a copy of the run (os.fork), which ends here: end it with os._exit\n"
            os.write(2, told)
            os._exit(1)


def _leave(leaving: SystemExit) -> NoReturn:
    """End this process as the interpreter would, but without what the run does at its own exit."""
    status = leaving.code
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    traceback.clear_frames(leaving.__traceback__)  # which closes, and so writes, files that were left open
    _flush()
    os._exit((status or 0) & 0xFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
