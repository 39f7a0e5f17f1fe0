"""The folder of a run: its name, its identity, and a lock so that two processes never train in the same folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.atomic import write_text
from lit_posttrain.runs.signals import alive

log = logging.getLogger(__name__)

RUN_ID = "run_id.txt"
_OWNER = re.compile(r"process (\d+) on (.+)")

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems that have none, such as Lustre without flock


def lock(handle: IO[Any]) -> bool:
    """Lock an open file until it is closed or this process ends. Returns False, with a warning, if the file system has
    no locks.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as problem:  # how some systems say it
        raise BlockingIOError from problem
    except OSError as problem:
        if problem.errno not in _NO_LOCKS:
            raise
        told = "%s cannot be locked on this file system: do not start a second command that writes there meanwhile"
        log.warning(told, handle.name)
        return False
    return True


class RunLock:
    """Held by the main process of a run while it trains. The system releases it when the process ends, however it ends;
    forked children do not hold it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / ".lock"
        self._handle: Any = None

    def take(self) -> None:
        """Make the folder if there is none, and lock it.

        Raises:
            PostTrainError: if another process trains there, or the folder cannot be made.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            while True:
                handle = self.file.open("a+")
                if self._locked(handle):
                    break
                handle.close()
        except OSError as problem:
            raise PostTrainError(
                f"{self.file.parent}: no run can be kept there ({problem.strerror or problem}); choose another folder "
                "with --runs, or another --name"
            ) from problem
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
        self._handle = handle

    def _locked(self, handle: Any) -> bool:
        """True if this process has the lock now, False if the file was removed meanwhile."""
        try:
            taken, locks = False, lock(handle)
        except BlockingIOError:
            taken, locks = True, True
        handle.seek(0)
        owner = handle.read().strip()
        known = _OWNER.fullmatch(owner)
        # without locks one that has ended may have left its name
        lives = known is not None and known[2] == socket.gethostname() and _is_another(int(known[1]))
        if taken or (lives and not locks):
            stale = "" if locks else f" (or remove {self.file}, if that process is something else by now)"
            raise PostTrainError(
                f"{self.file.parent} is being trained in by {owner or 'another process'}; wait for it, stop it, or "
                f"choose another --name{stale}"
            )
        with suppress(OSError):
            return os.path.samestat(os.fstat(handle.fileno()), self.file.stat())
        return False

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._handle is not None:
            self.file.unlink(missing_ok=True)
            self._handle.close()
            self._handle = None


def _is_another(process: int) -> bool:
    return process != os.getpid() and alive(process)


def goes_on(folder: Path, checkpoint: Path | str | None) -> bool:
    """True if a run that starts from a checkpoint continues the run of a folder: the checkpoint is in the folder, also
    by a link from or to it, or was saved by that run elsewhere.

    Raises:
        PostTrainError: if the file is no checkpoint, or damaged.
    """
    if checkpoint is None:
        return False
    file, run = Path(checkpoint), folder.resolve()
    if file.parent.resolve().is_relative_to(run) or file.resolve().is_relative_to(run):
        return True
    identity = run_identity(folder)
    if identity is None or not file.is_file():
        return False
    from lit_posttrain.runs.checkpoint_shards import read  # imports torch, which `--help` does not wait for

    about = read(file).get("lit_posttrain")
    return isinstance(about, dict) and about.get("run") == identity


def run_identity(folder: Path | str) -> str | None:
    """The identity of the run in a folder, which stays when the folder is moved; None if no run has begun there."""
    file = Path(folder) / RUN_ID
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def keep_identity(folder: Path) -> None:
    """Give the run of a folder an id, if it has none."""
    if run_identity(folder) is None:
        write_text(folder / RUN_ID, f"{uuid.uuid4().hex}\n")


def predictions_in(folder: Path) -> list[Path]:
    """The files of `predict`, one per process, finished or not."""
    named = re.compile(r"predictions(-\d+)?\.(jsonl|part)")
    return sorted(file for file in folder.glob("predictions*") if named.fullmatch(file.name) and file.is_file())


def measured(folder: Path) -> bool:
    """True if a run has trained in a folder, so that a new one would overwrite its metrics."""
    metrics = folder / "metrics.csv"
    return (folder / "config.yaml").exists() and metrics.exists() and metrics.stat().st_size > 0


def fresh_name(method: str, runs: Path, claim: bool) -> str:
    """A name that no run has: METHOD-DATE-TIME, or METHOD-JOB if a launcher started several processes: all of them get
    the same. Children inherit it through the environment.

    claim: make the folder, so that no other run takes the name.
    """
    if "LOCAL_RANK" in os.environ and "LIT_POSTTRAIN_RUN" in os.environ:
        return os.environ["LIT_POSTTRAIN_RUN"]
    job = _job()
    name = first = f"{method}-{job or time.strftime('%Y%m%d-%H%M%S')}"
    if job is None and claim:
        number = 1
        while not _claimed(runs / name):
            number += 1
            name = f"{first}-{number}"
    os.environ["LIT_POSTTRAIN_RUN"] = name
    return name


def _job() -> str | None:
    """A word that all processes of this run share and no other run has; None if this is the only process, or it starts
    the others."""
    launched = os.environ.get("TORCHELASTIC_RUN_ID")
    if launched not in (None, "none"):
        return launched
    if "LOCAL_RANK" in os.environ:  # torchrun without an id: its own process, and when that started
        parent = os.getppid()
        with suppress(OSError):
            return f"{parent}-{Path(f'/proc/{parent}/stat').read_text().rpartition(')')[2].split()[19]}"
        return f"{parent}"
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in os.environ:
        return f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
    return None


def slurm_name() -> str | None:
    """A run's name for `--resume auto` that is the same when the job is requeued: the job's id, and its array index."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"slurm-{os.environ['SLURM_ARRAY_JOB_ID']}-{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return f"slurm-{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else None


def _claimed(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except OSError:  # where no folder can be made at all, the lock says so
        return not folder.is_dir()
    return True
