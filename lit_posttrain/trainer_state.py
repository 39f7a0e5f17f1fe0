"""What the Trainer is at, asked in one place: the end of an optimizer step, a step that is logged, a dry run, the other
ranks, the seed of a place in the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

from lit_posttrain.errors import PostTrainError, on_all_ranks

Found = TypeVar("Found")


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


def seed_of(*place: int) -> int:
    """A seed that is a function of the run's seed and of a place in the run, such as (step, rank)."""
    return hash((int(os.environ.get("PL_GLOBAL_SEED", 0)), *place)) % 2**63


def together(trainer: Trainer, work: Callable[[], Found]) -> Found:
    """What `work` gives on this rank; all of them must ask. Where it fails on one it fails on all of them, or the
    others would wait for it."""
    try:
        found = work()
    except Exception as problem:
        from_all_ranks(str(problem) or type(problem).__name__, trainer)
        on_all_ranks(problem)
        raise
    if told := "; ".join(dict.fromkeys(said for said in from_all_ranks("", trainer) if said)):
        raise on_all_ranks(PostTrainError(told))
    return found


def from_all_ranks(value: Any, trainer: Trainer) -> list[Any]:
    """What every rank gives, in their order; all of them must ask."""
    if trainer.world_size == 1:
        return [value]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, value)
    return found
