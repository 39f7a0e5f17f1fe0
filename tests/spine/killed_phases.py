"""A run of every on-policy method to its end, and one that kills itself once at each of MOMENTS: it saves after every
optimizer step, and each time goes on from what it finds (`python killed_phases.py MODEL FOLDER`). One process a run,
forked from one that has imported all.

Writes FOLDER/METHOD/ended.json, with what became of each process, and end.pt in the folders of runs that came to their
end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from cases import METHODS, SAMPLING, build, kl_coefficient, kl_control
from helpers.processes import forked
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


def ended(method: str, model: Path, folder: Path, data: Path, moments: Sequence[str] = ()) -> dict[str, Any]:
    """The exit status of a run in a process of its own (-9 for SIGKILL), the moments at which its folder's runs were
    killed so far, and what they printed."""
    output = folder.with_suffix(".txt")
    status = os.waitpid(forked(run, method, model, folder, data, moments, output=output), 0)[1]
    reached = [moment for moment in MOMENTS if (folder / f"killed: {moment}").exists()]
    return {"status": os.waitstatus_to_exitcode(status), "reached": reached, "said": output.read_text()[-3000:]}


if __name__ == "__main__":
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for method in SAMPLING:
        data, whole, killed = (folder / method / name for name in ("data", "whole", "killed"))
        data.mkdir(parents=True)
        ends = {"whole": ended(method, model, whole, data)}
        ends |= {f"killed {n}": ended(method, model, killed, data, MOMENTS) for n in range(len(MOMENTS))}
        ends["last"] = ended(method, model, killed, data, MOMENTS)
        (folder / method / "ended.json").write_text(json.dumps(ends))
