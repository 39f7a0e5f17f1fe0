"""Prints the plan of a run before it starts, the time that is left after a few steps, and the outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import WandbLogger

from lit_posttrain.callbacks.audited import Audit, audit_of
from lit_posttrain.callbacks.clock import TrainingClock
from lit_posttrain.callbacks.plan_lines import ends_before_validation, number_of, plan, steps_of_epochs
from lit_posttrain.runs.figures import METRICS, run_figures
from lit_posttrain.trainer_state import dry_run, ends_step, validates

_TIMED_STEPS = 3
_OUTCOME = ("val/reward", "train/reward", "train/loss", "val/loss", "val/rewards/accuracies", "val/rewards/margins")


class RunPlan(Callback):
    """Prints a few lines before the first step, after a few steps the time that is left, and at the end the outcome."""

    def __init__(self, next_commands: Sequence[str] = ()) -> None:
        """
        Args:
            next_commands: Commands to print at the end for the use of the trained model.
        """
        self.next_commands = next_commands
        self._first: int | None = None  # the step at which training began, None before
        self._validated = 0  # the last validated step
        self._clock = TrainingClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print nothing yet: the resumed run may still be refused."""
        self._first, self._validated = None, trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the first batch print the plan, and log the audit of the data as a Weights & Biases table."""
        if self._first is not None:
            return
        self._first = trainer.global_step
        if not trainer.is_global_zero:
            return
        print("\n".join(f"{name:<10} {text}" for name, text in plan(trainer, pl_module)), flush=True)
        audit = audit_of(trainer)
        for logger in trainer.loggers:
            if audit is not None and isinstance(logger, WandbLogger):
                logger.log_table("audit", columns=list(_AUDIT_COLUMNS), data=_audit_rows(audit))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: validation is not part of a step's time."""
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again."""
        self._clock.go_on()
        self._validated = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Time a few steps after the first, which is the slowest."""
        done = trainer.global_step - (self._first or 0)
        if done > _TIMED_STEPS or not trainer.is_global_zero or not ends_step(trainer, batch_idx):
            return
        if done == 1:
            self._clock.restart()
        elif done == _TIMED_STEPS:
            left = trainer.estimated_stepping_batches - trainer.global_step
            per_step = self._clock.seconds / (_TIMED_STEPS - 1)
            if 0 < left < math.inf:
                comes = validates(trainer) and not ends_before_validation(trainer)
                more = "; validation comes on top" if comes else ""
                time_left = duration(left * per_step)
                steps = number_of(int(left), "step", "steps")
                pl_module.print(f"about {time_left} left ({steps} of {per_step:.2g} s{more})")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the outcome, unless a signal stopped the run: then `GracefulInterrupt` prints."""
        loosely: Any = trainer  # `callbacks` is set by a connector, unseen by type checkers
        stopped = any(getattr(callback, "interrupted", False) for callback in loosely.callbacks)
        if trainer.is_global_zero and not stopped and not dry_run(trainer):
            print("\n".join(f"{name:<10} {text}" for name, text in self._outcome(trainer)), flush=True)

    def _outcome(self, trainer: Trainer) -> list[tuple[str, str]]:
        if self._first is None or trainer.global_step == self._first:
            reason = ended_by(trainer) if trainer.should_stop else ""
            if reason:
                more = "; for more pass a longer --trainer.max_time, or null" if _out_of_time(trainer) else ""
                return [("done", f"no step was taken, at step {trainer.global_step:,}: ended by {reason}{more}")]
            ended_by_steps = 0 < trainer.max_steps <= trainer.global_step
            more = "--trainer.max_steps" if ended_by_steps else "--trainer.max_epochs"
            return [
                ("done", f"nothing was left to do: the run is at step {trainer.global_step:,}; raise {more} for more")
            ]
        logged = {name: f"{float(value):.4g}" for name, value in trainer.callback_metrics.items()}
        logged |= {name: str(value) for name, value in run_figures(Path(trainer.default_root_dir) / METRICS).items()}
        figures = [f"{name} {logged[name]}" for name in _OUTCOME if name in logged]
        kept = [str(f) for n in ("best.ckpt", "last.ckpt") if (f := Path(trainer.default_root_dir) / n).exists()]
        lines = [("done", "; ".join([f"step {trainer.global_step:,}", *figures]))]
        lines += [("ended by", reason)] if (reason := ended_by(trainer)) else []
        behind = trainer.global_step - self._validated
        if behind and any(file.endswith("best.ckpt") for file in kept):
            steps = number_of(behind, "step was", "steps were")
            older = "best.ckpt is older, and what export takes; last.ckpt has the last weights"
            lines.append(("note", f"the last {steps} not validated: {older}"))
        saving = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        own = [f"{c.dirpath}/*.ckpt" for c in saving if c.best_model_path or c.last_model_path]
        lines += [("kept", ", ".join([*kept, *dict.fromkeys(own)]))] if kept or own else []
        following = [("" if place else "next", command) for place, command in enumerate(self.next_commands)]
        return lines + (following if kept else [])


def ended_by(trainer: Trainer) -> str:
    """What ended a run before the end of its epochs, in words; "" if nothing did."""
    if 0 < trainer.max_steps <= trainer.global_step:
        epochs_end_too = trainer.max_steps >= steps_of_epochs(trainer)
        return "" if epochs_end_too else f"--trainer.max_steps {trainer.max_steps:,}"
    if not trainer.should_stop:
        return ""
    if _out_of_time(trainer):
        return "its time limit (--trainer.max_time, or Timer)"
    loosely: Any = trainer  # `callbacks` is set by a connector, unseen by type checkers
    for callback in loosely.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return f"early stopping: {callback.stopping_reason_message.removesuffix(' Signaling Trainer to stop.')}"
    return "a callback, which asked the Trainer to stop"


def _out_of_time(trainer: Trainer) -> bool:
    loosely: Any = trainer
    timers = [callback for callback in loosely.callbacks if isinstance(callback, Timer)]
    return any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers)


_AUDIT_COLUMNS = ("name", "rows", "dropped", "examples", "tokens", "trained_tokens")


def _audit_rows(audit: Audit) -> list[list[Any]]:
    files = [*audit.files, audit.total] if len(audit.files) > 1 else list(audit.files)
    return [[f.name, f.rows, f.dropped_count, f.examples, f.tokens, f.trained_tokens] for f in files]


def duration(seconds: float) -> str:
    """Seconds in words, to about two figures: `40 s`, `3 min`, `1 h 20 min`, `2 d 3 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
