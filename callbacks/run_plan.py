"""What a run is going to do, said before it starts, and how long it will take, said once it is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import WandbLogger

from lit_posttrain.callbacks.clock import TrainingClock
from lit_posttrain.callbacks.memory import optimizer_state_bytes, parameter_bytes, size_of
from lit_posttrain.callbacks.protocols import Audit, KeepsFrozenModels, TrainsInPhases, audit_of, part_of
from lit_posttrain.runs.figures import METRICS, run_figures
from lit_posttrain.trainer_state import dry_run, ends_step

_TIMED_STEPS = 3
_WARNINGS = 3
_OUTCOME = ("val/reward", "train/reward", "train/loss", "val/loss", "val/rewards/accuracies", "val/rewards/margins")


class RunPlan(Callback):
    """Prints a few lines before the first step, after a few steps the time that is left, and at the end the outcome."""

    def __init__(self, next_commands: Sequence[str] = ()) -> None:
        """
        Args:
            next_commands: What to tell people to do with the trained model, a line each.
        """
        self.next_commands = next_commands
        self._first: int | None = None  # the step at which training began, if it did
        self._validated = 0  # the last step that was
        self._clock = TrainingClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing yet: what is resumed may still be refused."""
        self._first, self._validated = None, trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the first batch print the plan; show the audit of the data in Weights & Biases."""
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
        """Validation is not part of a step's time."""
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on."""
        self._clock.go_on()
        self._validated = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Time a few steps after the first, which is slower than the others."""
        done = trainer.global_step - (self._first or 0)
        if done > _TIMED_STEPS or not trainer.is_global_zero or not ends_step(trainer, batch_idx):
            return
        if done == 1:
            self._clock.restart()
        elif done == _TIMED_STEPS:
            left = trainer.estimated_stepping_batches - trainer.global_step
            per_step = self._clock.seconds / (_TIMED_STEPS - 1)
            if 0 < left < math.inf:
                more = "; validation comes on top" if trainer.enable_validation else ""
                time_left = duration(left * per_step)
                steps = _number(int(left), "step", "steps")
                pl_module.print(f"about {time_left} left ({steps} of {per_step:.2g} s{more})")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what came of it, unless someone stopped the run (`GracefulInterrupt` speaks then)."""
        loosely: Any = trainer  # `callbacks` is set by a connector, unseen by type checkers
        stopped = any(getattr(callback, "interrupted", False) for callback in loosely.callbacks)
        if trainer.is_global_zero and not stopped and not dry_run(trainer):
            print("\n".join(f"{name:<10} {text}" for name, text in self._outcome(trainer)), flush=True)

    def _outcome(self, trainer: Trainer) -> list[tuple[str, str]]:
        if self._first is None or trainer.global_step == self._first:
            reason = ended_by(trainer) if trainer.should_stop else ""
            if reason:
                return [("done", f"no step was taken, at step {trainer.global_step:,}: ended by {reason}")]
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
            steps = _number(behind, "step was", "steps were")
            older = "best.ckpt is older, and what export takes; last.ckpt has the last weights"
            lines.append(("note", f"the last {steps} not validated: {older}"))
        saving = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        own = [f"{c.dirpath}/*.ckpt" for c in saving if c.best_model_path or c.last_model_path]
        lines += [("kept", ", ".join([*kept, *dict.fromkeys(own)]))] if kept or own else []
        following = [("" if place else "next", command) for place, command in enumerate(self.next_commands)]
        return lines + (following if kept else [])


def ended_by(trainer: Trainer) -> str:
    """What ended a run before the steps that its epochs have, in words; empty where nothing did."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return f"--trainer.max_steps {trainer.max_steps:,}"
    if not trainer.should_stop:
        return ""
    loosely: Any = trainer  # `callbacks` is set by a connector, unseen by type checkers
    for callback in loosely.callbacks:
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return "its time limit (--trainer.max_time, or Timer)"
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return f"early stopping: {callback.stopping_reason_message.removesuffix(' Signaling Trainer to stop.')}"
    return "a callback, which asked the Trainer to stop"


def plan(trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, str]]:
    """The lines of the plan, (name, text)."""
    audit = audit_of(trainer)
    parameters = list(pl_module.parameters())
    total = sum(size_of(p) for p in parameters)
    trained = sum(size_of(p) for p in parameters if p.requires_grad)
    where = f"{trainer.strategy.root_device.type} x {trainer.world_size}"
    return [
        *([("data", _data(audit))] if audit is not None else []),
        *([("mix", _mix(audit))] if audit is not None and audit.mix else []),
        *([("look at", line) for line in _first(audit.warnings)] if audit is not None else []),
        *([("columns", line) for line in _first(audit.unused)] if audit is not None else []),
        ("steps", _steps(trainer, "phase" if part_of(pl_module, TrainsInPhases) else "epoch")),
        *([("validation", note)] if (note := _validation(trainer)) else []),
        ("batch", _batch(trainer, pl_module)),
        *([("engine", note)] if (note := _engine(pl_module)) else []),
        ("model", f"{_count(total)} parameters, {_count(trained)} trained ({trained / max(total, 1):.2%})"),
        ("precision", f"{trainer.precision} on {where}"),
        *([("rate", note)] if (note := _rates(trainer)) else []),
        ("memory", _memory(trainer, pl_module)),
        ("folder", str(Path(trainer.default_root_dir))),
    ]


def _data(audit: Audit) -> str:
    total = audit.total
    aside = [(total.dropped_count, "dropped"), (audit.held_out, "held out for validation")]
    noted = ", ".join(f"{count:,} {what}" for count, what in aside if count)
    first = "a stream, first " if audit.first_rows else ""
    rows = first + _number(total.rows, "row", "rows") + (f" ({noted})" if noted else "")
    trained = f", {total.trained_share:.1%} of them trained" if total.trained_tokens else ""
    return f"{rows}, {total.tokens:,} tokens{trained}"


def _first(lines: Sequence[str]) -> list[str]:
    shown, more = lines[:_WARNINGS], len(lines) - _WARNINGS
    return [*shown, *([f"{more} more, see lit-posttrain audit"] if more > 0 else [])]


def _mix(audit: Audit) -> str:
    parts = [f"{s.path} {s.of_examples:.1%} ({s.of_tokens:.1%} of the trained tokens)" for s in audit.mix]
    return f"{sum(s.shown for s in audit.mix):,} examples an epoch: " + ", ".join(parts)


def _steps(trainer: Trainer, epoch: str) -> str:
    steps = trainer.estimated_stepping_batches
    if steps == math.inf or trainer.num_training_batches == math.inf:
        return "until stopped"
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    resumed = f", from step {trainer.global_step} on" if trainer.global_step else ""
    epochs = steps / per_epoch
    counted = f"{epochs:.3g} {epoch}{'' if epochs == 1 else 's'} of {per_epoch:,}"
    sooner = f" (sooner than --trainer.max_steps {trainer.max_steps:,})" if trainer.max_steps > steps else ""
    return f"{_number(int(steps), 'optimizer step', 'optimizer steps')}{resumed}: {counted}{sooner}"


def _validation(trainer: Trainer) -> str:
    """A notice where there is validation data and the run ends before it is used."""
    interval = trainer.val_check_batch
    if not trainer.enable_validation or interval is None or trainer.max_steps < 0:
        return ""
    if trainer.max_steps * trainer.accumulate_grad_batches >= min(interval, trainer.num_training_batches):
        return ""
    return f"none: --trainer.max_steps {trainer.max_steps} comes before it; --trainer.val_check_interval N is sooner"


def _batch(trainer: Trainer, pl_module: LightningModule) -> str:
    size = getattr(trainer.train_dataloader, "batch_size", None)
    whole = f"{size} rows a step, in " if isinstance(size, int) else ""
    if (sampled := part_of(pl_module, TrainsInPhases)) is not None:
        whole = f"{size} prompts x {sampled.group_size} responses a phase, steps in "
    micro, ranks = trainer.accumulate_grad_batches, trainer.world_size
    return f"{whole}{_number(micro, 'micro-batch', 'micro-batches')} x {_number(ranks, 'process', 'processes')}"


def _engine(pl_module: LightningModule) -> str:
    """A notice where responses come from another process, whose beginning nobody sees."""
    sampled = part_of(pl_module, TrainsInPhases)
    if sampled is None or sampled.engine_name == "hf":
        return ""
    return f"{sampled.engine_name}, which begins with the first phase: half a minute or more"


def _memory(trainer: Trainer, pl_module: LightningModule) -> str:
    parameters = list(pl_module.parameters())
    parts = {
        "weights": parameter_bytes(parameters, local=True),
        **_frozen(pl_module),
        "gradients": parameter_bytes([p for p in parameters if p.requires_grad], local=True),
    }
    unknown = ["activations"]
    for optimizer in trainer.optimizers:
        name, state = type(optimizer).__name__, optimizer_state_bytes(optimizer, local=True)
        if state is None:
            unknown.insert(0, f"the state of {name}")
        else:
            parts[f"{name} state"] = state
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    return f"{sum(parts.values()) / 1e9:.2f} GB a process ({listed}); {' and '.join(unknown)} on top"


def _rates(trainer: Trainer) -> str:
    """The learning rate after warm-up, of every group that has one of its own."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return " and ".join(dict.fromkeys(f"{float(group.get('initial_lr', group['lr'])):.3g}" for group in groups))


def _frozen(pl_module: LightningModule) -> dict[str, int]:
    """What frozen models take; a cache on disk and an adapter that is switched off take nothing."""
    kept = pl_module.frozen_weights if isinstance(pl_module, KeepsFrozenModels) else {}
    return {name: parameter_bytes(weights, local=True) for name, weights in kept.items()}


_AUDIT_COLUMNS = ("name", "rows", "dropped", "examples", "tokens", "trained_tokens")


def _audit_rows(audit: Audit) -> list[list[Any]]:
    files = [*audit.files, audit.total] if len(audit.files) > 1 else list(audit.files)
    return [[f.name, f.rows, f.dropped_count, f.examples, f.tokens, f.trained_tokens] for f in files]


def _count(number: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return str(number)


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


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
