"""The folder of a run on the command line: its name, its lock, and the removal of runs that fail early."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.folder import RUN_ID, RunLock, fresh_name, goes_on, measured, predictions_in
from lit_posttrain.runs.requeued import last_state, put_back, requeued, set_aside


def is_main_process() -> bool:
    """True in the process that manages the run's folder: rank 0."""
    known: Any = rank_zero_only  # Lightning sets the attribute from the launcher's environment, unseen by type checkers
    return bool(known.rank == 0)


class RunPlace:
    """The folder that a command runs in. name: of the run. folder: its path."""

    def __init__(self, command: str | None, options: Any, tracking: bool) -> None:
        """Choose the name, and write it into the options.

        Args:
            command: fit, validate, ...; None for a run in a notebook, and for `audit`.
            options: The parsed ones of the command.
            tracking: True for a run that keeps a folder.

        Raises:
            PostTrainError: for an empty name or folder, and a name that leads out of --runs.
        """
        _refuse_no_folder(options)
        self._command, self._options, self._tracking = command, options, tracking
        self._dry = bool(options.trainer.fast_dev_run)
        self._fresh = self._made_parent = False  # True if this process makes the folder, and the one around it
        self._lock: RunLock | None = None
        runs = Path(options["runs"])
        if options.get("name") is None:
            self._made_parent = not runs.exists()
            self._fresh = command == "fit" and tracking and is_main_process() and not self._dry
            options["name"] = fresh_name(_method(options), runs, self._fresh)
        self.name = str(options["name"])
        self.folder = runs / self.name
        if command == "fit" and is_main_process() and not self.folder.exists():
            self._fresh, self._made_parent = True, not self.folder.parent.exists()

    def take(self) -> None:
        """Lock the folder for this command, and choose the checkpoint that it resumes from.

        Raises:
            PostTrainError: if another run has left its files there, or is running.
        """
        self._name_requeued()
        if not is_main_process():
            return
        self._refuse_to_mix_runs()
        if self._tracking and self._command == "fit" and not self._dry:
            lock = RunLock(self.folder)
            lock.take()
            self._lock = lock

    def _name_requeued(self) -> None:
        """Pass Lightning's checkpoint of a requeued SLURM job as --ckpt_path, if the run resumes from it. Without a
        --ckpt_path Lightning would take it by itself, even if a newer one is beside it."""
        state, given = requeued(self.folder), self._options.get("ckpt_path")
        if self._command is None or state is None or self._dry:
            return
        if given is None and self._command != "fit" and SLURMEnvironment.detect():
            raise PostTrainError(
                f"{self._command} without a --ckpt_path would take {state} in a SLURM job; pass --ckpt_path best, "
                "last or hpc (that file), or for the model as it is another --name"
            )
        unasked = given is None and not self._options["overwrite"] and SLURMEnvironment.detect()
        if given == "hpc" or (unasked and last_state(self.folder) == state):
            self._options["ckpt_path"] = str(state)

    def _refuse_to_mix_runs(self) -> None:
        if not self._tracking or self._options["overwrite"]:
            return
        saved = [self.folder / "last.ckpt", self.folder / "best.ckpt", requeued(self.folder)]
        used = any(file is not None and file.exists() for file in saved)
        start, fitting = self._options.get("ckpt_path"), self._command in (None, "fit") and not self._dry
        if fitting and used and not goes_on(self.folder, start):
            other = f", which --ckpt_path {start} is not of (else put it into that folder)" if start else ""
            raise PostTrainError(
                f"{self.folder} holds a run already{other}: go on with it (--resume {shlex.quote(self.name)}), "
                "choose another --name, or start anew in it with --overwrite true"
            )
        if fitting and not used and start is None and measured(self.folder):
            raise PostTrainError(
                f"{self.folder} holds a run already, without a last.ckpt or best.ckpt to go on from: choose another "
                "--name, or start anew in it with --overwrite true"
            )
        written = next((f for f in predictions_in(self.folder) if f.suffix == ".jsonl"), None)
        if self._command == "predict" and written is not None:
            raise PostTrainError(f"{written} exists already; choose another --name, or pass --overwrite true")

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        runs = str(self._options["runs"])
        elsewhere = f" --runs {shlex.quote(runs)}" if runs != "runs" else ""
        return f"lit-posttrain fit --resume {shlex.quote(self.name)}{elsewhere}"

    @property
    def going_on(self) -> str:
        """How to go on after a failure that the run could not save at, in words."""
        if self._command != "fit":
            return "start it again"
        if not (self.folder / "last.ckpt").exists():
            return "nothing was saved yet, start it again"
        return f"go on from the last checkpoint: {self.resume_command}"

    def begin(self) -> None:
        """Keep Lightning from resuming from its checkpoint of a requeued job, where the run is to begin anew."""
        if self._tracking and self._options.get("ckpt_path") is None and not self._dry:
            set_aside(self.folder)

    def forget_unborn(self, trainer: Any) -> None:
        """Remove what a run has written that failed before its first step. trainer: None if it failed before there was
        one."""
        if trainer is not None:
            put_back(self.folder)
        self.release()
        if not self._fresh or not self.folder.exists() or (trainer is not None and trainer.global_step > 0):
            return
        if (self.folder / "wandb").exists():
            sys.modules["wandb"].teardown()  # it holds files open in the folder
            shutil.rmtree(self.folder / "wandb", ignore_errors=True)
        for name in ("config.yaml", "audit.json", "wandb_id.txt", RUN_ID):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in there
            self.folder.rmdir()
            if self._made_parent:
                self.folder.parent.rmdir()

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()


def _method(options: Any) -> str:
    return str(options.model.class_path).rsplit(".", 1)[-1].lower()


def _refuse_no_folder(options: Any) -> None:
    """An empty name, such as of a shell variable that is not set, would take the folder of all runs for one run's."""
    for option in ("name", "runs"):
        if options.get(option) is not None and not options[option].strip():
            raise PostTrainError(f"--{option} is empty; give one, or leave it out")
    name = options.get("name")
    if name is not None and len((place := Path(name)).parts) > 1 and place.is_absolute():
        apart = f"--runs {shlex.quote(str(place.parent))} --name {shlex.quote(place.name)}"
        raise PostTrainError(f"--name {place}: not the name of a folder in --runs; pass {apart}")
    if name is not None and Path(os.path.normpath(name)).parts[:1] in ((), ("..",), ("/",)):
        raise PostTrainError(f"--name {name}: not the name of a folder in --runs; give one, or leave it out")
