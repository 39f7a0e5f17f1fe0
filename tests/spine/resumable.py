"""A run that saves after every optimizer step and goes on from what it finds (`python resumable.py METHOD MODEL FOLDER
DATA`). The parent kills it at any moment. Writes FOLDER/weights.pt when it has come to its end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from cases import METHODS, build
from helpers.runs import quiet_trainer

from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.models.spec import LoRASpec

EPOCHS, ACCUMULATE = 3, 3


class Started(pl.Callback):
    """Says that training has begun, and slows it down so that a kill falls anywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, idx: int) -> None:
        (self.folder / "started").touch()
        time.sleep(0.02)


def run(method: str, model: Path, folder: Path, data: Path, slow_writes: bool = True) -> None:
    """Train to the end, from last.ckpt if it is there."""
    if slow_writes:
        fsync = os.fsync

        def slow_fsync(descriptor: int) -> None:
            time.sleep(0.05)
            fsync(descriptor)

        os.fsync = slow_fsync
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(0, verbose=False)
    # dropout in the adapters: the random state has to be right too
    module = build(method, model, lora=LoRASpec(r=4, dropout=0.2))
    last = folder / "last.ckpt"
    trainer = quiet_trainer(
        Started(folder),
        LastCheckpoint(every_n_steps=1),
        max_epochs=EPOCHS,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=0.5,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=METHODS[method].data(data), ckpt_path=str(last) if last.exists() else None)
    torch.save({"step": trainer.global_step, "weights": module.state_dict()}, folder / "weights.part")
    (folder / "weights.part").replace(folder / "weights.pt")


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
