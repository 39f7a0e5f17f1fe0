"""What the bar shows of a run."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
from helpers.runs import write

from lit_posttrain import GRPO, ModelSpec, PromptData, RolloutConfig
from lit_posttrain.callbacks import StepProgressBar
from lit_posttrain.rewards import FunctionReward


def letters(completions: list[str]) -> list[float]:
    return [float(len(said)) for said in completions]


def test_the_bar_says_how_far_a_rollout_is(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first phase on, when no step has been taken yet."""
    monkeypatch.setattr("lit_posttrain.callbacks.progress._LOG_FILE_INTERVAL_S", 0.0)
    file = write(tmp_path / "prompts.jsonl", [{"prompt": f"count to {i}"} for i in range(4)])
    module = GRPO(
        ModelSpec(str(tiny_model)), [FunctionReward(letters)], rollout=RolloutConfig(group_size=2, max_new_tokens=6)
    )
    trainer = pl.Trainer(
        max_steps=2,
        max_epochs=-1,
        callbacks=[StepProgressBar()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=PromptData(file, batch_size=2, cache_dir=str(tmp_path / "cache")))
    shown = capsys.readouterr().out.replace("\r", "\n").splitlines()
    rollout = [number for number, line in enumerate(shown) if "sampling: token 5 of 6" in line]
    stepped = next(number for number, line in enumerate(shown) if "1/2" in line)
    assert rollout
    assert rollout[0] < stepped < rollout[-1]
