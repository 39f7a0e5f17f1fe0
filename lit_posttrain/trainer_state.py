"""What the Trainer is at, asked in one place: the end of an optimizer step, a step that is logged, a dry run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer steps on this micro-batch. Lightning steps on an epoch's last one in any case."""
    done = batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches


def logs_step(trainer: Trainer, step: int | None = None) -> bool:
    """Whether Lightning logs optimizer step number `step`; by default the one that just ended."""
    loosely: Any = trainer  # the attribute is set by Lightning's logger connector, unseen by type checkers
    return bool((trainer.global_step if step is None else step) % loosely.log_every_n_steps == 0)


def dry_run(trainer: Trainer) -> bool:
    """Whether this is Lightning's fast_dev_run, which leaves nothing on disk."""
    loosely: Any = trainer
    return bool(loosely.fast_dev_run)
