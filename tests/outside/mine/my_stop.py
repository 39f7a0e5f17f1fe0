"""Ends the process as a machine without memory does, once."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class Stop(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        mark = Path(f"{trainer.default_root_dir}.stopped")
        if trainer.global_step == self.step and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
