"""One progress bar for a whole run, in optimizer steps."""

from __future__ import annotations

import math
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lit_posttrain.trainer_state import ends_step

_LOG_FILE_INTERVAL_S = 10.0


class StepProgressBar(TQDMProgressBar):
    """Counts optimizer steps of all the run, where Lightning's counts micro-batches of an epoch, from zero. A file
    that the console goes to gets a line's worth every ten seconds."""

    def init_train_tqdm(self) -> Tqdm:
        """A bar of steps."""
        bar = super().init_train_tqdm()
        bar.unit = "step"
        if not sys.stdout.isatty():
            bar.mininterval = _LOG_FILE_INTERVAL_S
        return bar

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Without the loggers' version numbers, and the training loss called a loss."""
        shown = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train/"): value for name, value in shown.items() if name != "v_num"}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the step that the run is resumed from."""
        super().on_train_start(trainer, pl_module)
        steps = trainer.estimated_stepping_batches
        bar = self.train_progress_bar
        bar.reset(total=None if math.isinf(steps) else int(steps))
        bar.initial = bar.n = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which epoch it is, from one."""
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}{of}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on at the end of a step."""
        if ends_step(trainer, batch_idx):
            bar = self.train_progress_bar
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.update(trainer.global_step - bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last step's figures."""
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
