"""Where the Trainer stands, asked in one place: the end of an optimizer step, a step that is logged, a dry run; and
seeds that are a function of a place in the run."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """True if the optimizer steps on this micro-batch. Lightning steps on the last one of an epoch in any case."""
    done = batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches


def logs_step(trainer: Trainer, step: int | None = None) -> bool:
    """True if Lightning logs optimizer step number `step`; by default the one that has just ended."""
    loosely: Any = trainer  # the attribute is set by Lightning's logger connector, unseen by type checkers
    return bool((trainer.global_step if step is None else step) % loosely.log_every_n_steps == 0)


def dry_run(trainer: Trainer) -> bool:
    """True for Lightning's fast_dev_run, which leaves nothing on disk."""
    loosely: Any = trainer
    return bool(loosely.fast_dev_run)


def validates(trainer: Trainer) -> bool:
    """True if a run has rows to validate on. Known once training begins; loaders that Lightning makes only in a later
    epoch (check_val_every_n_epoch) are taken to have rows."""
    if not trainer.enable_validation:
        return False
    return trainer.val_dataloaders is None or sum(trainer.num_val_batches) > 0


def seed_of(*place: int) -> int:
    """A seed that is a function of the run's seed and of a place in the run, such as (step, rank)."""
    return hash((int(os.environ.get("PL_GLOBAL_SEED", 0)), *place)) % 2**63


def attached_trainer(module: LightningModule) -> Trainer | None:
    """The Trainer that a module is attached to; None outside of one, as in a notebook."""
    try:
        return module.trainer
    except RuntimeError:
        return None


def evaluating(module: LightningModule) -> bool:
    """True while validation or test data is under way."""
    trainer = attached_trainer(module)
    return trainer is not None and not trainer.training


def fitting(trainer: Trainer | None) -> bool:
    """True within `Trainer.fit`, its validations included."""
    return trainer is not None and trainer.state.fn == TrainerFn.FITTING


def num_replicas(trainer: Trainer) -> tuple[int, int]:
    """How many data-parallel ranks share a step, and which of them this is."""
    given = trainer.distributed_sampler_kwargs or {}
    return int(given.get("num_replicas", 1)), int(given.get("rank", 0))
