"""Checkpoints that survive anything: written whole or not at all, at moments from which a run resumes exactly.

Lightning 2.6 resumes exactly from a checkpoint written at the end of an optimizer step (`on_train_batch_end`) or of a
validation. From one written at the end of an epoch or of training it does not, once `max_steps` is set: it replays a
phantom batch (issue 19617) or counts an epoch twice. Its ModelCheckpoint writes there, and after a resume also in the
middle of an accumulation; so `LastCheckpoint` and `BestCheckpoint` choose their own moments, and `LastCheckpoint` sees
to it that a file that is written at another moment holds the state of the last good one.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from lit_posttrain.callbacks.finished_step import FinishedStep, begin_with_validation, validates_next
from lit_posttrain.callbacks.memory import optimizer_state_bytes, parameter_bytes
from lit_posttrain.callbacks.monitors import refuse_misspelt
from lit_posttrain.callbacks.protocols import GoesOn, TrainsInPhases, part_of
from lit_posttrain.callbacks.step_ends import averages, ends_in_callbacks, require_averages_of_steps
from lit_posttrain.errors import PostTrainError, is_on_all_ranks, on_all_ranks
from lit_posttrain.runs.checkpoint_files import require_space
from lit_posttrain.runs.checkpoint_shards import bytes_on_disk
from lit_posttrain.runs.signals import RunStopped
from lit_posttrain.trainer_state import dry_run, ends_step

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` in the run's folder: every few optimizer steps, at the end of every epoch (but not of every
    rollout phase) and of training, and when an error ends it.

    A request to stop in the middle of an accumulation (a time limit, say) waits for the end of the optimizer step. All
    checkpoints of the run, whoever writes them and when, hold the end of the last optimizer step; a validation that was
    due then and did not end is made up by the run that goes on from them.
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
        self._saved: tuple[int, bool] = (0, False)  # the step, and whether its validation was still due
        self._kept = False  # whether last.ckpt is this run's, and not an earlier one's
        self._begun = False  # whether this run has come to its training
        self._validates = False
        self._between_steps = True
        self._stop_later = False
        self._finished: FinishedStep | None = None
        self._weights_move = False  # between the gradient of a step and its end
        self._validated = False  # whether the metrics of the validation at hand are known
        self._resumed: dict[str, Any] = {}
        self._one_more = False  # whether the Trainer was told of a further step, so that it begins at all

    @property
    def state_key(self) -> str:
        return "LastCheckpoint"  # of subclasses too, and whatever it is told

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No step of this run has ended yet."""
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
            _require_space_for_run(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """From here to the end of the step the weights are of no step."""
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
        if (
            part_of(pl_module, TrainsInPhases) is not None
        ):  # whose epochs are a few steps long: the last one alone counts
            ends_epoch = ends_epoch and trainer.current_epoch + 1 == trainer.max_epochs
        if due or ends_epoch or trainer.global_step == trainer.max_steps or _stops(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What has been validated before is no more. Where an average of the weights is validated, it takes their
        place meanwhile: the step is saved before that, and nothing is saved while it lasts."""
        self._validated = False
        if self._one_more:
            trainer.fit_loop.epoch_loop.max_steps, self._one_more = trainer.max_steps - 1, False
        if self._unsaved() and averages(trainer):
            self._save(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on callbacks may save the step with what its validation has found. One that Lightning adds because
        the run is to stop is none that the run that goes on would skip."""
        self._validated = validates_next(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save again what was saved just before validation, now with its results: a resumed run skips to after it."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._between_steps:
            if self._validated:
                self._finished = FinishedStep.of(trainer, pl_module, validation_due=False)
            saved_before = self._saved[0] == trainer.global_step
            if trainer.global_step > 0 and (saved_before or _stops(trainer)):
                self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save steps that no other moment saved, those of an epoch that was cut short. (Not as late as at the end of
        training, when an average of the weights has replaced them.)

        Raises:
            PostTrainError: as `on_train_start`, where that shows now.
        """
        require_averages_of_steps(trainer)
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if self._saved[0] != trainer.global_step and (last or part_of(pl_module, TrainsInPhases) is None):
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last optimizer step that ended, and say how to go on."""
        told = self.save_finished_step(trainer, pl_module, exception)
        if told and trainer.is_global_zero and not isinstance(exception, (KeyboardInterrupt, RunStopped)):
            how = self.resume_command or f"trainer.fit(..., ckpt_path={str(_last(trainer))!r})"
            print(f"\n{told}" + (f"; go on with: {how}" if self._kept else ""), flush=True)

    def save_finished_step(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> str:
        """Save what is not saved yet as something ends the run; what to say of it, or nothing where there was no step.
        On one of several processes this cannot be done alone: it takes all of them."""
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
        """Let the checkpoint be one of a step's end."""
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
        """Begin with the validation that is due. Where all steps are taken Lightning would not begin at all."""
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


class BestCheckpoint(Checkpoint):
    """Keeps `best.ckpt` in the run's folder: the state with the best value of a metric of the validation."""

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        """
        Args:
            monitor: Name of a metric of the validation.
            mode: Whether the lowest (min) or the highest (max) value is the best.
        """
        self.monitor, self.mode = monitor, mode
        self.best_score: float | None = None
        self.best_model_path = ""  # what Trainer.test(ckpt_path="best") reads
        self._looked = False

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.monitor},{self.mode}]"

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to validate within an optimizer step: a run could not be resumed exactly from such a checkpoint.

        Raises:
            PostTrainError: if the interval of the validation is not a multiple of the accumulation.
        """
        interval, accumulate = trainer.val_check_batch, trainer.accumulate_grad_batches
        if not trainer.enable_validation or accumulate == 1 or interval == trainer.num_training_batches:
            return
        if interval is None or (isinstance(interval, int) and interval % accumulate):
            what = "a time" if interval is None else f"{interval} micro-batches"
            raise PostTrainError(
                f"--trainer.val_check_interval is {what}, which is not a multiple of "
                f"--trainer.accumulate_grad_batches {accumulate}: best.ckpt would hold half an optimizer step"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """After the first step that is logged, refuse a misspelt metric, of any callback that monitors one.

        Raises:
            PostTrainError: see `refuse_misspelt`.
        """
        if self._looked or not trainer.enable_validation:
            return
        self._looked = refuse_misspelt(trainer, pl_module, self.monitor)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the metric is better than ever.

        Raises:
            PostTrainError: if the validation has no such metric.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or dry_run(trainer):
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics and float(metrics.get("val/reward/missing_ratio", 0.0)) == 1.0:
            told = (
                "no reward has a say on any response to the validation's prompts, so there is no val/reward: look "
                "whether their rows have the columns that the rewards read"
            )
            raise on_all_ranks(PostTrainError(told))
        if self.monitor not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("val/"))) or "none"
            told = f"--monitor {self.monitor}: not a metric of the validation; choose one of: {known}"
            raise on_all_ranks(PostTrainError(told))
        score = float(metrics[self.monitor])
        if not trainer.strategy.broadcast(_best(trainer).exists()):  # a run that began with another one's checkpoint
            self.best_score = None
        if not trainer.strategy.reduce_boolean_decision(self._better(score)):
            return
        path = _best(trainer)
        before, self.best_score = self.best_score, score
        try:
            trainer.save_checkpoint(path)
        except BaseException:
            self.best_score = before  # what is saved now must not know of a best.ckpt that there is not
            raise
        self.best_model_path = str(path)

    def _better(self, score: float) -> bool:
        if math.isnan(score) or self.best_score is None:
            return not math.isnan(score)
        return score < self.best_score if self.mode == "min" else score > self.best_score


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


def _best(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "best.ckpt"


def _step_is_over(trainer: Trainer, before: FinishedStep | None) -> bool:
    """True if the optimizer has stepped, and what failed did so behind it."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    stepped = before is None or trainer.global_step == before.step + 1
    return stepped and progress.processed == progress.ready > progress.completed


def _stops(trainer: Trainer) -> bool:
    """True if Lightning will heed `should_stop` now."""
    enough = trainer.global_step >= (trainer.min_steps or 0) and trainer.current_epoch >= (trainer.min_epochs or 0)
    return trainer.should_stop and enough


def _require_space_for_run(trainer: Trainer, pl_module: LightningModule) -> None:
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in pl_module.parameters() if p.requires_grad or pl_module.strict_loading]
    one = parameter_bytes(parameters)
    for optimizer in trainer.optimizers:
        one += optimizer_state_bytes(optimizer) or 0
    names = ["last.ckpt", "best.ckpt"] if trainer.enable_validation else ["last.ckpt"]
    held = sum(bytes_on_disk(folder / name) for name in names)
    # every file, and the copy that exists while one of them is replaced
    require_space(folder, one * (len(names) + 1) - held, f"the run's checkpoints ({', '.join(names)})")
