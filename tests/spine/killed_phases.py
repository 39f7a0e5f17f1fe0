"""A run of an on-policy method that saves after every optimizer step, goes on from what it finds, and kills itself once
at each of MOMENTS (`python killed_phases.py METHOD MODEL FOLDER DATA`). Writes FOLDER/end.pt when it has come to its
end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from cases import METHODS, build, kl_coefficient, kl_control
from helpers.runs import quiet_trainer

from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.loggers import MetricsCSV

PHASES, ACCUMULATE = 4, 2
MOMENTS = ("sampled", "scored", "within a step", "between minibatches", "end of a phase")


class Kill(pl.Callback):
    """Ends the process by SIGKILL where a moment is reached for the first time, in the second phase or later."""

    def __init__(self, folder: Path, moments: Sequence[str]) -> None:
        self.folder, self.moments = folder, moments

    def at(self, moment: str, phase: int) -> None:
        mark = self.folder / f"killed: {moment}"
        # one a phase at most: those before it must have happened
        before = self.moments[: self.moments.index(moment)] if moment in self.moments else []
        due = moment in self.moments and all((self.folder / f"killed: {m}").exists() for m in before)
        if due and phase > 0 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, module: Any) -> None:
        sampler, prepare = module.collector.sampler, module.prepare
        answers = sampler.answers

        def sampled(*given: Any) -> Any:
            found = answers(*given)
            self.at("sampled", module.loader.phase)
            return found

        def scored(*given: Any) -> Any:
            self.at("scored", module.loader.phase)
            return prepare(*given)

        sampler.answers, module.prepare = sampled, scored

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == ACCUMULATE + 1:
            self.at("within a step", pl_module.loader.phase)
        if batch_idx == ACCUMULATE:
            self.at("between minibatches", pl_module.loader.phase)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.at("end of a phase", pl_module.loader.phase)


def run(method: str, model: Path, folder: Path, data: Path, moments: Sequence[str] = ()) -> None:
    """Train to the end, from last.ckpt if it is there."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(0, verbose=False)
    module: Any = build(method, model)
    kill, last = Kill(folder, moments), folder / "last.ckpt"
    kill.watch(module)
    trainer = quiet_trainer(
        kill,
        *kl_control(module),
        LastCheckpoint(every_n_steps=1),
        logger=MetricsCSV(folder),
        log_every_n_steps=1,
        max_epochs=PHASES,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=0.5,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=METHODS[method].data(data), ckpt_path=str(last) if last.exists() else None)
    end = {
        "weights": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict()["state"],
        "step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "num_tokens": module.num_tokens,
        "kl_coefficient": kl_coefficient(module),
        "loader": module.loader.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(end, folder / "end.part")
    (folder / "end.part").replace(folder / "end.pt")


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), MOMENTS)
