"""Checkpoints that survive anything: written whole or not at all, at moments from which a run resumes exactly.

Lightning 2.6 resumes exactly from a checkpoint written at the end of an optimizer step (`on_train_batch_end`) or of a
validation. From one written at the end of an epoch or of training it does not, once `max_steps` is set: it replays a
phantom batch (issue 19617) or counts an epoch twice. Its ModelCheckpoint writes there, and after a resume also in the
middle of an accumulation; so `LastCheckpoint` and `BestCheckpoint` choose their own moments, and `LastCheckpoint` sees
to it that a file that is written at another moment holds the state of the last good one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from lit_posttrain.callbacks.best_checkpoint import BestCheckpoint
from lit_posttrain.callbacks.disk_space import require_space_for_checkpoints
from lit_posttrain.callbacks.finished_step import FinishedStep, begin_with_validation, validates_next
from lit_posttrain.callbacks.protocols import GoesOn, sampler_of
from lit_posttrain.callbacks.step_ends import averages, ends_in_callbacks, require_averages_of_steps
from lit_posttrain.errors import PostTrainError, is_on_all_ranks
from lit_posttrain.runs.signals import RunStopped
from lit_posttrain.trainer_state import dry_run, ends_step

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` in the run's folder: every few optimizer steps, at the end of every epoch (but not of every
    rollout phase) and of training, and when an error ends it.

    A request to stop in the middle of an accumulation (a time limit, say) waits for the end of the optimizer step. All
    checkpoints of the run, whoever writes them and when, hold the end of the last optimizer step. If the validation of
    that step was due and did not finish, the resumed run begins with it.
    """

    def __init__(self, every_n_steps: int = 200, resume_command: str = "") -> None:
        """
        Args:
            every_n_steps: Save every so many optimizer steps.
            resume_command: What to tell people to go on with after an error, such as `lit-posttrain fit --resume NAME`.
        """
        if every_n_steps < 1:
            raise PostTrainError(f"--checkpoint_every is {every_n_steps}; it must be at least 1")
        self.every_n_steps, self.resume_command = every_n_steps, resume_command
        self._saved: tuple[int, bool] = (0, False)  # the step, and True if its validation was still due
        self._kept = False  # True if last.ckpt is this run's, and not an earlier one's
        self._begun = False  # True once training has started
        self._validates = False
        self._between_steps = True
        self._stop_later = False
        self._finished: FinishedStep | None = None
        self._weights_move = False  # True between the gradient of a step and its end
        self._validated = False  # True once the metrics of the running validation are known
        self._resumed: dict[str, Any] = {}
        self._one_more = False  # True while max_steps is one higher, so that the Trainer starts at all

    @property
    def state_key(self) -> str:
        return "LastCheckpoint"  # of subclasses too, and whatever it is told

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run of this object."""
        self._finished, self._weights_move, self._kept, self._begun = None, False, False, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to train what could not be saved.

        Raises:
            PostTrainError: if the disk is too small, or an average of the weights is made at ends of epochs.
        """
        require_averages_of_steps(trainer)
        self._begun, self._saved = True, (trainer.global_step, bool(self._resumed.get("validation_due")))
        self._kept = Path(trainer.ckpt_path or "").resolve() == _last(trainer).resolve()
        self._between_steps, self._stop_later = True, False
        self._validates = trainer.enable_validation  # an interrupted run leaves its last validation out
        # what monitors a metric looks for it again at the end of an epoch
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in self._resumed.get("metrics", {}).items()})
        self._resumed = {}
        for logger in trainer.loggers:
            if isinstance(logger, GoesOn):
                logger.goes_on_from(trainer.global_step)
        if not dry_run(trainer) and trainer.is_global_zero:
            require_space_for_checkpoints(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """From here to the end of the step the weights belong to no finished step."""
        self._weights_move = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, when the epoch's last step is done, and when training is about to stop."""
        self._between_steps = ends_step(trainer, batch_idx)
        if not self._between_steps:
            if trainer.should_stop:
                trainer.should_stop, self._stop_later = False, True
            return
        self._finish(trainer, pl_module)
        if self._stop_later:
            trainer.should_stop, self._stop_later = True, False
        due = trainer.global_step % self.every_n_steps == 0
        ends_epoch = batch_idx + 1 == trainer.num_training_batches
        if sampler_of(pl_module) is not None:  # its epochs are a few steps long: only the last one counts
            ends_epoch = ends_epoch and trainer.current_epoch + 1 == trainer.max_epochs
        if due or ends_epoch or trainer.global_step == trainer.max_steps or _stops(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation. While an average of the weights is validated it stands in their place, so the
        step is saved first, and nothing is saved until the validation is over."""
        self._validated = False
        if self._one_more:
            trainer.fit_loop.epoch_loop.max_steps, self._one_more = trainer.max_steps - 1, False
        if self._unsaved() and averages(trainer):
            self._save(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on checkpoints include the validation's results. A validation that Lightning adds because the run
        stops is not planned: the resumed run must not skip its own for it."""
        self._validated = validates_next(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save again what was saved just before the validation, now with its results: a resumed run skips it."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._between_steps:
            if self._validated:
                self._finished = FinishedStep.of(trainer, pl_module, validation_due=False)
            saved_before = self._saved[0] == trainer.global_step
            if trainer.global_step > 0 and (saved_before or _stops(trainer)):
                self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is unsaved of an epoch that was cut short. (The end of training would be too late: by then an
        average may have replaced the weights.)

        Raises:
            PostTrainError: as `on_train_start`, where that shows now.
        """
        require_averages_of_steps(trainer)
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if self._saved[0] != trainer.global_step and (last or sampler_of(pl_module) is None):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last optimizer step that ended, and say how to go on."""
        told = self.save_finished_step(trainer, pl_module, exception)
        if told and trainer.is_global_zero and not isinstance(exception, (KeyboardInterrupt, RunStopped)):
            how = self.resume_command or f"trainer.fit(..., ckpt_path={str(_last(trainer))!r})"
            print(f"\n{told}" + (f"; go on with: {how}" if self._kept else ""), flush=True)

    def save_finished_step(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> str:
        """Save the last finished step when something ends the run. Returns what to print about it, "" if no step was
        taken. Saving is collective: where only some of several processes fail, nothing is saved."""
        self._validated = False
        if trainer.world_size == 1 or is_on_all_ranks(exception):
            try:
                if self._weights_move and not ends_in_callbacks(trainer) and _step_is_over(trainer, self._finished):
                    self._finish(trainer, pl_module)
                if self._unsaved() and not self._weights_move:
                    self._save(trainer)
            except Exception as problem:  # what ended the run is to be read, not this
                log.error("the last steps could not be saved: %s", problem)
        if dry_run(trainer):
            return ""
        saved = f"step {self._saved[0]} is saved in {_last(trainer)}" if self._kept else ""
        return "; ".join(filter(None, (saved, self.lost_steps(trainer))))

    def lost_steps(self, trainer: Trainer) -> str:
        """How many of the last steps could not be saved, in words; empty where all are."""
        lost = trainer.global_step - self._saved[0] if self._begun and not dry_run(trainer) else 0
        return f"the last {'step is' if lost == 1 else f'{lost} steps are'} lost" if lost else ""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint one of the last step's end."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        done = self._finished
        validated = trainer.validating and self._validated
        if done is not None and done.step == trainer.global_step and not validated:
            done.put_into(checkpoint)
            validation_due = done.validation_due
        else:
            validation_due = self._validates and not validated and validates_next(trainer)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint["callbacks"][self.state_key] = {
            "step": trainer.global_step,
            "validation_due": validation_due,
            "metrics": metrics,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Begin with the validation that is due. If all steps are taken, Lightning starts only for one more."""
        self._resumed = checkpoint["callbacks"].get(self.state_key, {})
        if trainer.state.fn == TrainerFn.FITTING and self._resumed.get("validation_due"):
            begin_with_validation(checkpoint)
            if self._resumed["step"] == trainer.max_steps:
                trainer.fit_loop.epoch_loop.max_steps, self._one_more = trainer.max_steps + 1, True

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = self._validates and validates_next(trainer)
        self._finished, self._weights_move = FinishedStep.of(trainer, pl_module, due), False

    def _unsaved(self) -> bool:
        done = self._finished
        return done is not None and (done.step, done.validation_due) != self._saved

    def _save(self, trainer: Trainer) -> None:
        if not dry_run(trainer):
            trainer.save_checkpoint(_last(trainer))
            self._kept = True
            self._saved = (trainer.global_step, self._finished is not None and self._finished.validation_due)


def run_checkpoints(
    every_n_steps: int = 200,
    monitor: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    resume_command: str = "",
) -> list[Checkpoint]:
    """`best.ckpt` and `last.ckpt`; in this order, so that the last one knows the best score."""
    return [BestCheckpoint(monitor, mode), LastCheckpoint(every_n_steps, resume_command)]


def _last(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "last.ckpt"


def _step_is_over(trainer: Trainer, before: FinishedStep | None) -> bool:
    """True if the optimizer has stepped, and what failed did so behind it."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    stepped = before is None or trainer.global_step == before.step + 1
    return stepped and progress.processed == progress.ready > progress.completed


def _stops(trainer: Trainer) -> bool:
    """True if Lightning will heed `should_stop` now."""
    enough = trainer.global_step >= (trainer.min_steps or 0) and trainer.current_epoch >= (trainer.min_epochs or 0)
    return trainer.should_stop and enough
