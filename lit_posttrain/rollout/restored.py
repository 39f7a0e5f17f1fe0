"""The embedded engine of a restored model: in bfloat16 on hardware that is fast in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lit_posttrain.models.restore import Restored
from lit_posttrain.rollout.hf import HFEngine
from lit_posttrain.runtime import fast_bfloat16_cpu


def computes_in_bfloat16(device: torch.device) -> bool:
    """True where models that are only used compute in bfloat16."""
    return device.type == "cuda" or fast_bfloat16_cpu()


def restored_engine(restored: Restored, batch_size: int) -> HFEngine:
    """An engine that generates `batch_size` responses together.

    Raises:
        PostTrainError: for a reward model.
    """
    fast = computes_in_bfloat16(restored.device)

    def context() -> AbstractContextManager[Any]:
        return torch.autocast(restored.device.type, dtype=torch.bfloat16) if fast else nullcontext()

    return HFEngine(restored.policy, restored.eos_ids, batch_size=batch_size, context=context)
