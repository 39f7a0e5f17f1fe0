"""One progress bar for a whole run, in optimizer steps."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lit_posttrain.callbacks.protocols import TellsOfSampling, part_of
from lit_posttrain.trainer_state import ends_step

_LOG_FILE_INTERVAL_S, _LOG_FILE_BATCHES = 10.0, 100


class StepProgressBar(TQDMProgressBar):
    """Counts optimizer steps of all the run, where Lightning's counts micro-batches of an epoch, from zero. In a file
    that the console goes to it is redrawn every ten seconds, and validations draw none."""

    def __init__(self) -> None:
        self._begun = False
        self._sampling_shown = -math.inf
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else _LOG_FILE_BATCHES)

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def init_validation_tqdm(self) -> Tqdm:
        """Seen while it runs, and nowhere else."""
        return super().init_validation_tqdm() if sys.stdout.isatty() else Tqdm(disable=True)

    def init_train_tqdm(self) -> Tqdm:
        """A bar of steps that begins where the run is resumed."""
        steps = self.trainer.estimated_stepping_batches
        return Tqdm(
            initial=self.trainer.global_step,
            total=None if math.isinf(steps) else int(steps),
            unit="step",
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
            mininterval=0.1 if sys.stdout.isatty() else _LOG_FILE_INTERVAL_S,
        )

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Without the loggers' version numbers, and the training loss called a loss."""
        shown = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train/"): value for name, value in shown.items() if name != "v_num"}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing yet: what is resumed may still be refused."""
        self._begun = False
        sampler = part_of(pl_module, TellsOfSampling)
        if sampler is not None and not self.is_disabled:
            sampler.sampling_progress = self._sampling

    def _sampling(self, batch: int, batches: int, token: int, longest: int) -> None:
        """Say how far a rollout is, before the steps that are taken with it."""
        self._begin()
        of = f"batch {batch} of {batches}, " if batches > 1 else ""
        self.train_progress_bar.set_postfix_str(f"sampling: {of}token {token} of {longest}", refresh=False)
        if time.monotonic() - self._sampling_shown >= self.train_progress_bar.mininterval:
            self._sampling_shown = time.monotonic()
            self.train_progress_bar.refresh()

    def _begin(self) -> None:
        if not self._begun:
            self.train_progress_bar, self._begun = self.init_train_tqdm(), True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the bar goes on through the epochs."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin at the first batch; say which epoch it is, from one."""
        self._begin()
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}{of}", refresh=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on at the end of a step."""
        if ends_step(trainer, batch_idx):
            bar = self.train_progress_bar
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.update(trainer.global_step - bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        if self._begun:
            self.train_progress_bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What is said of it belongs on a line of its own."""
        if self._begun:
            self.train_progress_bar.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last step's figures; a run that is resumed at an epoch's end has taken none yet."""
        if self._begun:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
