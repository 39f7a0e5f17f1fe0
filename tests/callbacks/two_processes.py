"""Run by test_distributed.py in two processes: train with all callbacks, stop, go on, fail; look at rewards.

Usage: two_processes.py MODEL FOLDER WHAT...; each of fit, interrupt, resume, bad_loss, rewards.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.recorded import Recorder, random_trees
from helpers.rewards import look_at_rewards
from helpers.runs import quiet_trainer

from lit_posttrain.callbacks import (
    FiniteLossGuard,
    GracefulInterrupt,
    RunPlan,
    SampleLogger,
    Throughput,
    run_checkpoints,
)
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.data.store.loader import EvalLoader, StepLoader
from lit_posttrain.errors import PostTrainError
from lit_posttrain.methods.sft import SFT
from lit_posttrain.models.spec import ModelSpec


class OneRankInterrupted(pl.Callback):
    """The second process alone gets Ctrl-C, inside the fifth micro-batch."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 4:
            os.kill(os.getpid(), signal.SIGINT)


class OneRankBad(SFT):
    """The loss of the second process is not finite in the third step."""

    def loss_terms(self, batch: Any) -> Any:
        terms = super().loss_terms(batch)
        if self.trainer.global_rank == 1 and self.trainer.global_step == 2:
            terms = {name: replace(term, total=term.total * float("nan")) for name, term in terms.items()}
        return terms


def main(model: str, folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    method = OneRankBad if what == "bad_loss" else SFT
    module = method(ModelSpec(model), Optim(lr=1e-3, weight_decay=0.01, schedule="constant"))
    recorder = Recorder()
    callbacks = [
        FiniteLossGuard(),
        GracefulInterrupt(),
        RunPlan(),
        Throughput(peak_tflops=1.0),
        SampleLogger(["one plus two"], max_new_tokens=3),
        *([OneRankInterrupted()] if what == "interrupt" else []),
        *run_checkpoints(100),
    ]
    trainer = quiet_trainer(
        recorder,
        *callbacks,
        devices=2,
        strategy="ddp",
        accumulate_grad_batches=2,
        max_epochs=2 if what == "fit" else 3,
        default_root_dir=str(folder),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
    )
    rank = int(os.environ["LOCAL_RANK"])
    train = StepLoader(random_trees(20), batch_size=8, accumulate=2, rank=rank, world=2)
    val = EvalLoader(random_trees(5, seed=1), batch_size=4, rank=rank, world=2)
    error = None
    try:
        trainer.fit(module, train, val, ckpt_path=folder / "last.ckpt" if what == "resume" else None)
    except PostTrainError as problem:
        error = str(problem)
    weights = [p.detach() for p in module.parameters()]
    last = folder / "last.ckpt"
    saved_step = torch.load(last, weights_only=True)["global_step"] if last.exists() else None
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found = {
        "error": error,
        "step": trainer.global_step,
        "saved_step": saved_step,
        "metrics": metrics,
        "batches": recorder.batches,
    }
    torch.save({**found, "weights": weights}, folder / f"{what}-{rank}.pt")
    trainer.strategy.barrier()


if __name__ == "__main__":
    for what in sys.argv[3:]:
        print(f"== {what}", flush=True)
        if what == "rewards":
            look_at_rewards(sys.argv[1], Path(sys.argv[2]), devices=2)
        else:
            main(sys.argv[1], Path(sys.argv[2]), what)
