"""Processes that rewards start: they end with the run, or with a call that is cut short."""

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

Process = tuple[int, int]  # id and start time, since ids are reused


class Seen(NamedTuple):
    """A process in /proc. parent: id. ended: True for a zombie, whose exit status nobody has read."""

    parent: int
    ended: bool


_ADOPT = 36  # Linux's PR_SET_CHILD_SUBREAPER
_MOST_ENDED = 100  # processes whose exit status is kept, of those that may be waited for
_HELPERS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")  # which end with this process


class RewardProcesses:
    """Keeps track of the processes that are started in calls of rewards. On systems without /proc it does nothing.

    From the first call to the end of the run this process adopts those whose parent has ended (`sleep 60 &`, or the
    commands of a shell that a timeout killed), which otherwise become children of process 1.
    """

    def __init__(self) -> None:
        self._started: set[Process] = set()
        self._stuck: set[Process] = set()
        self._of_others: set[Process] = set()  # those of `_started` that are no children of this process

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the processes that the block starts, and kill them if it takes too long or the run stops, since the
        block cannot do it any more. Others may be used by later calls, and end with the run. A fork of this process
        that leaves the block (`os.fork()` without an exit) ends there: it would go on training beside this one."""
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
        """Keep the processes that still run, and add `fresh` ones and those that a known process has started."""
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
        """Read the exit status of zombies, or the system runs out of process ids. The reward may want to read that of
        its own children: only those of other processes are read, and the oldest of many. (A process whose parent ended
        before it was seen looks like a child of this one.)"""
        own = os.getpid()
        ended = [process for process in self._started if found[process] == Seen(own, True)]
        orphans = [process for process in ended if process in self._of_others]
        others = sorted(set(ended) - set(orphans), key=lambda process: process[1])
        for number, _ in [*orphans, *others[:-_MOST_ENDED]]:
            with suppress(ChildProcessError):
                os.waitpid(number, os.WNOHANG)

    def end_stuck(self) -> None:
        """Kill processes that a call that was cut short has used: at its exit the interpreter would wait for them."""
        _end(self._stuck & _descendants().keys())
        self._stuck = set()

    def end(self) -> None:
        """Kill all processes that rewards have started, and read their exit status."""
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
    """The fields of /proc/PID/stat after the name: the state, the parent, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _descendants() -> dict[Process, Seen]:
    """All descendants of this process, parents before their children."""
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
    """End a fork of this process that leaves the block: with the status of its `sys.exit`, else with 1."""
    own = os.getpid()
    _flush()  # or a fork would write it again
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
    """End this process as the interpreter would, but without the run's exit handlers."""
    status = leaving.code
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    traceback.clear_frames(leaving.__traceback__)  # which closes, and so flushes, open files
    _flush()
    os._exit((status or 0) & 0xFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
