"""Scripts of the tests in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def forked(work: Callable[..., Any], *given: Any, output: Path) -> int:
    """Begin `work` in a process forked from this one, which has imported all that it needs; the process's number.

    Its status is 99 after an exception. output: file to which what it prints is added.
    """
    child = os.fork()
    if child == 0:
        status = 99
        try:
            with output.open("a") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            work(*given)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


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
