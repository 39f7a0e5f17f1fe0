"""Runs commands of `lit-posttrain` one after another (`python run_commands.py FILE`, which holds a list of [NAME,
ARGUMENTS]) and writes FILE.results with what became of each. Where they need several processes, as many run the same
commands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from command_lines import SAVED_EVERY

from lit_posttrain.cli.main import main
from lit_posttrain.errors import PostTrainError


class Image(pl.Callback):
    """Copies the run's folder as it is after the first save: what a run that is killed then leaves behind."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        image = Path(f"{trainer.default_root_dir}.image")
        if trainer.global_step == SAVED_EVERY and trainer.is_global_zero and not image.exists():
            shutil.copytree(trainer.default_root_dir, image)


class Killed(pl.Callback):
    """Kills all processes of the run by SIGKILL within its second save, once: on one rank, where that is about to do
    something to a file (`event` of Python's audit, such as os.rename) whose path has `file` in it."""

    def __init__(self, event: str, file: str, rank: int) -> None:
        self.event, self.file, self.rank = event, file, rank
        self.saving = False

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.mark = Path(f"{trainer.default_root_dir}.killed")
        if not self.mark.exists() and trainer.global_rank == self.rank:
            sys.addaudithook(self._look)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.saving = trainer.global_step == 2 * SAVED_EVERY

    def _look(self, event: str, arguments: Any) -> None:
        # a rename has two paths
        if self.saving and event == self.event and any(self.file in str(part) for part in arguments[:2]):
            self.mark.touch()
            os.killpg(os.getpgid(0), signal.SIGKILL)


class FailsOnce(pl.Callback):
    """Lets what follows an optimizer step fail on one rank, once: a reward, or the rows of a stream."""

    def __init__(self, what: str, step: int, rank: int) -> None:
        self.what, self.step, self.rank = what, step, rank

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, out: Any, batch: Any, batch_idx: int) -> None:
        mark = Path(f"{trainer.default_root_dir}.failed")
        if trainer.global_step != self.step or trainer.global_rank != self.rank or mark.exists():
            return
        mark.touch()
        if self.what == "reward":
            pl_module.collector.rewards._calls.score = self._fails
        else:
            trainer.train_dataloader.check = self._fails  # type: ignore[union-attr]

    def _fails(self, *given: Any) -> Any:
        raise PostTrainError("it is spoilt")


class Dies(pl.Callback):
    """Kills one process of the run, as a machine without memory does, behind the first save."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > SAVED_EVERY and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    file = Path(sys.argv[1])
    results = {}
    for name, arguments in json.loads(file.read_text()):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status: Any = main(arguments)
            except BaseException:  # also what ends a process: the next command is another matter
                status = "traceback"
                traceback.print_exc()
        results[name] = {"status": status, "said": said.getvalue()}
    rank = int(os.environ.get("LOCAL_RANK", 0))
    Path(f"{file}.results" + (f".{rank}" if rank else "")).write_text(json.dumps(results))
