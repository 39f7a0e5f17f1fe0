"""Ctrl-C ends a run at the end of an optimizer step, saved, so that it can go on later as if nothing had happened."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_posttrain.callbacks.checkpoint import LastCheckpoint
from lit_posttrain.trainer_state import dry_run, ends_step


class GracefulInterrupt(Callback):
    """On the first Ctrl-C finishes the optimizer step, saves last.ckpt and ends the run; the second stops at once.

    The validation that would follow the step is left out. `interrupted` says afterwards whether it came to that.
    """

    def __init__(self, resume_command: str = "") -> None:
        """
        Args:
            resume_command: What to tell people to go on with, such as `lit-posttrain fit --resume NAME`.
        """
        self.resume_command = resume_command
        self.interrupted = False
        self._previous_handler: Any = None
        self._validation_batches: int | float | None = None
        self._between_steps = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over Ctrl-C. Before training there is nothing to save, and in other threads Python does not let us."""
        self.interrupted, self._between_steps = False, True
        if threading.current_thread() is threading.main_thread() and self._previous_handler is None:
            self._previous_handler = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        print("\nstopping after this optimizer step; Ctrl-C again stops at once", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a step stop, if any process was asked to; `LastCheckpoint` comes after this and saves."""
        self._between_steps = ends_step(trainer, batch_idx)
        if self._between_steps and self._asked(trainer):
            self._validation_batches, trainer.limit_val_batches = trainer.limit_val_batches, 0
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ctrl-C came during validation: there is no step to wait for."""
        if trainer.state.fn == TrainerFn.FITTING and self._between_steps and self._asked(trainer):
            self._stop(trainer)

    def _asked(self, trainer: Trainer) -> bool:
        self.interrupted = bool(trainer.strategy.reduce_boolean_decision(self.interrupted, all=False))
        return self.interrupted

    def _stop(self, trainer: Trainer) -> None:
        trainer.should_stop = True
        saving = any(isinstance(c, LastCheckpoint) for c in trainer.checkpoint_callbacks)
        if not saving and not dry_run(trainer):
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how to go on."""
        if self.interrupted and trainer.is_global_zero:
            path = str(Path(trainer.default_root_dir) / "last.ckpt")
            command = self.resume_command or f"trainer.fit(..., ckpt_path={path!r})"
            print(f"stopped at step {trainer.global_step}; go on with: {command}", flush=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Ctrl-C and validation back."""
        self._restore(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As `teardown`, which Lightning does not call then; after Ctrl-C it leaves the signal ignored."""
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None
        if self._validation_batches is not None:
            trainer.limit_val_batches = self._validation_batches
            self._validation_batches = None
