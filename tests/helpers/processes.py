"""Scripts of the tests in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, str]:
    """What this process imports from, and one thread a process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def run_script(
    script: Path, *arguments: object, limit_s: float = 300, session: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, which may be a failure. session: let it kill all of its processes, and those alone."""
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=limit_s, start_new_session=session
    )


def forked(
    work: Callable[..., int | None], *given: Any, output: Path, errors: Path | None = None, session: bool = False
) -> int:
    """Begin `work` in a process forked from this one, which has imported all that it needs; the process's number.

    Its status is what `work` returns, 0 for None, and 99 after an exception. output, errors: files to which what it
    prints is added, both into the first without a second. session: in a session of its own, as a terminal and a
    scheduler start a command.
    """
    child = os.fork()
    if child == 0:
        status = 99
        try:
            if session:
                os.setsid()
            torch.set_num_threads(1)  # OpenMP's own do not outlive a fork
            os.environ["OMP_NUM_THREADS"] = "1"
            sys.stdout = output.open("a")  # pytest's stand elsewhere than at 1 and 2
            sys.stderr = errors.open("a") if errors else sys.stdout
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stderr.fileno(), 2)
            status = work(*given) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return child


def ended(child: int) -> int | None:
    """The status of a forked process (-9 for SIGKILL), None while it runs; asked no more once it has ended."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def ended_within(child: int, limit_s: float) -> int:
    """The status of a forked process, which is killed after so many seconds."""
    ends = time.monotonic() + limit_s
    while (status := ended(child)) is None:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"it runs for more than {limit_s} s")
        time.sleep(0.02)
    return status


@contextmanager
def locked_elsewhere(file: Path) -> Iterator[None]:
    """Another process has locked a file, as a command or a run does."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('locked', flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        yield
        other.communicate()
