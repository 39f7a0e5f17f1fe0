"""Adapters learn at a rate that fits the method: that of its config, times what the overlay asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.cli import fit

from lit_posttrain.cli.training import PostTrainCLI

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.mark.parametrize("overlay", ["lora", "qlora"])
@pytest.mark.parametrize("config", ["sft", "dpo", "kto", "orpo", "simpo", "reward", "grpo_gsm8k", "ppo"])
def test_the_overlay_keeps_the_optimizer_of_the_config(config: str, overlay: str, tiny_model: Path) -> None:
    args = ["--config", str(CONFIGS / f"{config}.yaml"), "--model.policy.path", str(tiny_model)]
    plain: Any = PostTrainCLI(args=args, run=False, tracking=False)
    overlaid = [*args, "--config", str(CONFIGS / f"with/{overlay}.yaml")]
    adapted: Any = PostTrainCLI(args=overlaid, run=False, tracking=False)
    assert adapted.config.model.init_args.optim == plain.config.model.init_args.optim
    assert plain.model.model_spec.lora is None
    assert adapted.model.model_spec.lora.lr_factor == 10.0


def test_the_plan_says_the_rate_of_the_adapters(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--config", "with/lora.yaml", "--name", "one", "--trainer.max_steps", "1") == 0
    shown = capsys.readouterr().out
    assert "rate       0.0002\n" in shown, shown.splitlines()
    assert fit(chats, tiny_model, "--name", "two", "--trainer.max_steps", "1") == 0
    assert "rate       2e-05\n" in capsys.readouterr().out
