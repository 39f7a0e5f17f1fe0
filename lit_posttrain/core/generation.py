"""Generation from the policy as it is, in the Trainer's precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import lightning.pytorch as pl
import torch

from lit_posttrain.models.policy import Policy
from lit_posttrain.rollout.hf import HFEngine
from lit_posttrain.trainer_state import attached_trainer


def policy_engine(
    module: pl.LightningModule, policy: Policy, eos_ids: Sequence[int], batch_size: int, entries: int | None = None
) -> HFEngine:
    """An engine on a module's policy, or on another model of it; `entries` as `HFEngine` takes it. With sharded weights
    every rank must call it alike."""
    trainer = attached_trainer(module)
    sharded = trainer is not None and module.device_mesh is not None

    @contextmanager
    def context() -> Iterator[None]:
        with trainer.precision_plugin.forward_context() if trainer is not None else nullcontext():
            before = torch.is_autocast_cache_enabled()
            # Lightning's autocast would cast every weight anew at every token. Of sharded weights the casts are not
            # kept: that would keep the whole model on every rank.
            torch.set_autocast_cache_enabled(before or not sharded)
            try:
                yield
            finally:
                torch.set_autocast_cache_enabled(before)

    def any_rank(flag: bool) -> bool:
        assert trainer is not None
        return bool(trainer.strategy.reduce_boolean_decision(flag, all=False))

    return HFEngine(
        policy,
        list(eos_ids),
        batch_size=batch_size,
        context=context,
        any_rank=any_rank if sharded else None,
        entries=entries,
    )
