"""Learning-rate schedules against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from lit_posttrain.core.schedules import Schedule, scheduler_of


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (1, 1)])
@pytest.mark.parametrize(
    ("schedule", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_rates_equal_transformers(schedule: Schedule, theirs: str, warmup: int, total: int) -> None:
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3) for _ in range(2)]
    mine = scheduler_of(optimizers[0], schedule, warmup, total)
    oracle = get_scheduler(theirs, optimizers[1], num_warmup_steps=warmup, num_training_steps=total)
    for _ in range(total):
        assert mine.get_last_lr() == pytest.approx(oracle.get_last_lr(), abs=1e-12)
        for optimizer, scheduler in zip(optimizers, (mine, oracle), strict=True):
            optimizer.step()
            scheduler.step()
