"""The lines that `RunPlan` prints before the first step: data, steps, batch, model, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from lit_posttrain.callbacks.audited import Audit, audit_of
from lit_posttrain.callbacks.memory import optimizer_state_bytes, parameter_bytes, size_of
from lit_posttrain.callbacks.protocols import KeepsFrozenModels, sampler_of
from lit_posttrain.trainer_state import validates

_WARNINGS = 3


def plan(trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, str]]:
    """The lines of the plan: (name, text)."""
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
        ("steps", _steps(trainer, "phase" if sampler_of(pl_module) is not None else "epoch")),
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
    rows = first + number_of(total.rows, "row", "rows") + (f" ({noted})" if noted else "")
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
    per_epoch = steps_per_epoch(trainer)
    resumed = f", from step {trainer.global_step} on" if trainer.global_step else ""
    epochs = steps / per_epoch
    counted = f"{epochs:.3g} {epoch}{'' if epochs == 1 else 's'} of {per_epoch:,}"
    sooner = f" (sooner than --trainer.max_steps {trainer.max_steps:,})" if trainer.max_steps > steps else ""
    return f"{number_of(int(steps), 'optimizer step', 'optimizer steps')}{resumed}: {counted}{sooner}"


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps of an epoch of known length."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def steps_of_epochs(trainer: Trainer) -> float:
    """Optimizer steps of all epochs, whatever --trainer.max_steps is; infinity where that is not known."""
    if trainer.max_epochs is None or trainer.max_epochs < 0 or trainer.num_training_batches == math.inf:
        return math.inf
    return trainer.max_epochs * steps_per_epoch(trainer)


def ends_before_validation(trainer: Trainer) -> bool:
    """True if the run has rows to validate on, and ends before its first validation."""
    interval = trainer.val_check_batch
    if not validates(trainer) or interval is None or trainer.max_steps < 0:
        return False
    return trainer.max_steps * trainer.accumulate_grad_batches < min(interval, trainer.num_training_batches)


def _validation(trainer: Trainer) -> str:
    if not ends_before_validation(trainer):
        return ""
    return f"none: --trainer.max_steps {trainer.max_steps} comes before it; --trainer.val_check_interval N is sooner"


def _batch(trainer: Trainer, pl_module: LightningModule) -> str:
    size = getattr(trainer.train_dataloader, "batch_size", None)
    whole = f"{size} rows a step, in " if isinstance(size, int) else ""
    if (sampled := sampler_of(pl_module)) is not None:
        whole = f"{size} prompts x {sampled.group_size} responses a phase, steps in "
    micro, ranks = trainer.accumulate_grad_batches, trainer.world_size
    return f"{whole}{number_of(micro, 'micro-batch', 'micro-batches')} x {number_of(ranks, 'process', 'processes')}"


def _engine(pl_module: LightningModule) -> str:
    """A notice if responses come from another process, which takes a while to start."""
    sampled = sampler_of(pl_module)
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
    """The learning rates after warm-up, each once."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return " and ".join(dict.fromkeys(f"{float(group.get('initial_lr', group['lr'])):.3g}" for group in groups))


def _frozen(pl_module: LightningModule) -> dict[str, int]:
    """Bytes of each frozen model; a cache on disk and an adapter that is switched off take none."""
    kept = pl_module.frozen_weights if isinstance(pl_module, KeepsFrozenModels) else {}
    return {name: parameter_bytes(weights, local=True) for name, weights in kept.items()}


def _count(number: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{letter}"
    return str(number)


def number_of(count: int, one: str, many: str) -> str:
    """A count with its noun: `1 step`, `1,200 steps`."""
    return f"{count:,} {one if count == 1 else many}"
