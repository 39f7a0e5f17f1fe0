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
    """Counts the optimizer steps of the whole run, where Lightning's bar counts the micro-batches of an epoch. If the
    output goes to a file it is redrawn every ten seconds, and validations have no bar."""

    def __init__(self) -> None:
        self._begun = False
        self._sampling_shown = -math.inf
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else _LOG_FILE_BATCHES)

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def init_validation_tqdm(self) -> Tqdm:
        """A bar on terminals only."""
        return super().init_validation_tqdm() if sys.stdout.isatty() else Tqdm(disable=True)

    def init_train_tqdm(self) -> Tqdm:
        """A bar of optimizer steps that begins at the step of the resume."""
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
        """Without the loggers' version numbers, and without the prefix `train/`."""
        shown = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train/"): value for name, value in shown.items() if name != "v_num"}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw nothing yet: the resumed run may still be refused."""
        self._begun = False
        sampler = part_of(pl_module, TellsOfSampling)
        if sampler is not None and not self.is_disabled:
            sampler.sampling_progress = self._sampling

    def _sampling(self, batch: int, batches: int, token: int, longest: int) -> None:
        """Show how far a rollout is, before its optimizer steps."""
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
        """Do nothing: one bar serves all epochs."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the bar at the first batch; show the epoch, counted from one."""
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
        """Close the bar, so that the error is printed on a line of its own."""
        if self._begun:
            self.train_progress_bar.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last step's metrics, unless the run was resumed at the epoch's end and has taken no step."""
        if self._begun:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
