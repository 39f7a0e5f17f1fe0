"""Learning-rate schedules: linear warm-up, then constant, linear decay or half a cosine to zero."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["linear", "cosine", "constant"]


def share_of_peak(step: int, schedule: Schedule, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) as a share of its peak, 0 to 1."""
    if step < warmup_steps:
        return step / warmup_steps
    done = min((step - warmup_steps) / max(1, total_steps - warmup_steps), 1.0)
    if schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0


def scheduler_of(optimizer: Optimizer, schedule: Schedule, warmup_steps: int, total_steps: int) -> LambdaLR:
    """A scheduler to be stepped after every optimizer step. transformers has the same ones, behind an import of every
    quantization library that is installed."""
    share = partial(share_of_peak, schedule=schedule, warmup_steps=warmup_steps, total_steps=total_steps)
    return LambdaLR(optimizer, share)
