"""What the embedded engine casts under bf16-mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import quiet_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from lit_posttrain import SFT, ModelSpec
from lit_posttrain.rollout.engine import Sampling
from lit_posttrain.rollout.hf import HFEngine

PROMPTS = [[5, 6, 7, 8], [40, 41]]


class WeightCasts(TorchDispatchMode):
    """Counts the conversions of parameters to another type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().startswith("aten::_to_copy") and isinstance(args[0], torch.nn.Parameter)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def module(tiny_model: Path) -> SFT:
    made = SFT(ModelSpec(str(tiny_model)))
    made.trainer = quiet_trainer(precision="bf16-mixed")
    made.configure_model()
    return made


def casts(engine: HFEngine, tokens: int) -> int:
    seen = WeightCasts()
    with seen:
        engine.generate(PROMPTS, 2, Sampling(tokens, seed=1))
    return seen.count


def test_every_weight_is_cast_once_however_many_tokens_are_drawn(module: SFT) -> None:
    engine = module.engine()
    engine.eos_ids = torch.tensor([999])  # all tokens are drawn
    assert casts(engine, 3) == casts(engine, 12) > 0


def test_the_tokens_are_those_without_kept_casts(module: SFT) -> None:
    plain = HFEngine(module.language_model, [2], context=module.trainer.precision_plugin.forward_context)
    assert module.engine().generate(PROMPTS, 4, Sampling(12, seed=1)) == plain.generate(
        PROMPTS, 4, Sampling(12, seed=1)
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_the_setting_of_the_process_is_given_back(module: SFT, enabled: bool) -> None:
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(enabled)
    try:
        module.generate(PROMPTS, Sampling(2))
        assert torch.is_autocast_cache_enabled() == enabled
    finally:
        torch.set_autocast_cache_enabled(before)
