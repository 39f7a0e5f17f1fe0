"""Scripts of the tests in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.utilities import rank_zero_only


def environment() -> dict[str, str]:
    """What this process imports from, and one thread a process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


# imports take longer than most scripts; what they lack they import themselves
IMPORTED = ["run_commands", "lit_posttrain.cli.training", "peft", "transformers.models.llama.modeling_llama"]


def run_script(
    script: Path, *arguments: object, limit_s: float = 300, devices: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, which may be a failure, in a session of its own, forked from a process that has imported
    what most need. devices: so many processes run it as ranks of one Trainer, as torchrun starts them; the status is 1
    if one of them failed."""
    words = [str(script), *map(str, arguments)]
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(IMPORTED)
    with TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdout", "stderr")]
        process = forks.Process(target=_as_script, args=(words, environment(), said, devices))
        with mock.patch.dict(os.environ, environment()):  # the first one starts the process that is forked
            process.start()
        process.join(limit_s)
        if process.exitcode is None:
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(words, limit_s)
        return subprocess.CompletedProcess(words, process.exitcode, *(file.read_text() for file in said))


def _as_script(words: list[str], variables: dict[str, str], said: list[Path], devices: int) -> None:
    os.setsid()
    for descriptor, file in enumerate(said, 1):
        with file.open("a") as stream:
            os.dup2(stream.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    if devices == 1 or _is_rank(devices):
        runpy.run_path(words[0], run_name="__main__")


def _is_rank(devices: int) -> bool:
    """Fork the ranks: true in each of them. The process that waits for them exits with their status."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = []
    for rank in range(devices):
        child = os.fork()
        if child == 0:
            os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            # Lightning has read it from the environment when it was imported
            setattr(rank_zero_only, "rank", rank)  # noqa: B010  # an attribute that type checkers do not see
            return True
        ranks.append(child)
    failed = [child for child in ranks if os.waitpid(child, 0)[1] != 0]
    sys.exit(bool(failed))


def forked(
    work: Callable[..., int | None], *given: Any, output: Path, errors: Path | None = None, session: bool = False
) -> int:
    """Begin `work` in a process forked from this one, which has imported all that it needs; the process's number.

    Its status is what `work` returns, 0 for None, and 99 after an exception. output, errors: files to which what it
    prints is added, both into the first without a second. session: in a session of its own, as a terminal and a
    scheduler start a command.
    """
    if torch.distributed.is_initialized():  # a test may have left a group, whose threads do not outlive a fork
        torch.distributed.destroy_process_group()
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
