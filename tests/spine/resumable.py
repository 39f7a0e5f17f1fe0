"""A run that saves after every optimizer step, killed at any moment and gone on with, and one that comes to its end, of
each method (`python resumable.py MODEL FOLDER KILLS METHOD...`). One process a run, forked from one that has imported
all. Writes FOLDER/METHOD/moments.txt, what each kill interrupted, and weights.pt in FOLDER/METHOD/whole and /killed; or
FOLDER/METHOD/output.txt, why not."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from cases import METHODS, build
from helpers.processes import ended, forked
from helpers.runs import quiet_trainer

from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.models.spec import LoRASpec

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

EPOCHS, ACCUMULATE = 3, 3


class Started(pl.Callback):
    """Says that training has begun, and slows it down so that a kill falls anywhere."""

    def __init__(self, folder: Path, pause_s: float) -> None:
        self.folder, self.pause_s = folder, pause_s

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, idx: int) -> None:
        (self.folder / "started").touch()
        time.sleep(self.pause_s)


def run(method: str, model: Path, folder: Path, data: Path, slow: bool = False) -> None:
    """Train to the end, from last.ckpt if it is there."""
    if slow:
        fsync = os.fsync

        def slow_fsync(fd: FileDescriptorLike) -> None:
            time.sleep(0.05)
            fsync(fd)

        os.fsync = slow_fsync
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(0, verbose=False)
    # dropout in the adapters: the random state has to be right too
    module = build(method, model, lora=LoRASpec(r=4, dropout=0.2))
    last = folder / "last.ckpt"
    trainer = quiet_trainer(
        Started(folder, 0.02 if slow else 0.0),
        LastCheckpoint(every_n_steps=1),
        max_epochs=EPOCHS,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=0.5,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=METHODS[method].data(data), ckpt_path=str(last) if last.exists() else None)
    torch.save({"step": trainer.global_step, "weights": module.state_dict()}, folder / "weights.part")
    (folder / "weights.part").replace(folder / "weights.pt")


def kill(method: str, model: Path, folder: Path, data: Path, kills: int) -> None:
    """Kill a run `kills` times, and say each time what it was doing."""
    chance, done = random.Random(0), 0
    known = {"started", "last.ckpt", "weights.pt", "output.txt"}
    while done < kills:
        (folder / "started").unlink(missing_ok=True)
        child, status = forked(run, method, model, folder, data, True, output=folder / "output.txt"), None
        while not (folder / "started").exists() and status is None:
            time.sleep(0.01)
            status = ended(child)
        # a step takes about 0.15 s here: some kills come before the first checkpoint, some a few steps later
        time.sleep(chance.uniform(0.0, 0.35))
        status = ended(child) if status is None else status
        if status is not None:
            assert status == 0, (folder / "output.txt").read_text()[-3000:]
            assert done, "the run ended before it could be killed"
            (folder / "weights.pt").unlink()
            (folder / "last.ckpt").unlink()  # it came to its end: begin again
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        writing = any(file.name not in known for file in folder.iterdir())
        with (folder.parent / "moments.txt").open("a") as moments:
            moments.write("writing a checkpoint\n" if writing else "training\n")


def main(method: str, model: Path, root: Path, kills: int) -> None:
    data, whole, killed = (root / name for name in ("data", "whole", "killed"))
    for folder in (data, whole, killed):
        folder.mkdir()

    def to_the_end(folder: Path) -> None:
        child = forked(run, method, model, folder, data, output=folder / "output.txt")
        assert os.waitpid(child, 0)[1] == 0, (folder / "output.txt").read_text()[-3000:]

    to_the_end(whole)
    kill(method, model, killed, data, kills)
    to_the_end(killed)


if __name__ == "__main__":
    for name in sys.argv[4:]:
        home = Path(sys.argv[2]) / name
        home.mkdir()
        # what goes wrong with one method says nothing of the others
        os.waitpid(forked(main, name, Path(sys.argv[1]), home, int(sys.argv[3]), output=home / "output.txt"), 0)
