"""Rewards and engines that fail: once, on every response, at some point of the run, or by having nothing to say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.on_policy import fit, grpo, prompts
from helpers.runs import quiet_trainer

from lit_posttrain import Completion, PostTrainError, PromptData
from lit_posttrain.callbacks import BestCheckpoint, LastCheckpoint
from lit_posttrain.rewards import ExactMatch, FunctionReward


def test_a_reward_that_fails_on_everything_ends_a_phase_and_a_validation(tiny_model: Path, tmp_path: Path) -> None:
    def broken(completions: list[str]) -> list[float]:
        return [math.nan] * len(completions)

    with pytest.raises(PostTrainError, match=r"reward broken fails on every response, first on the prompt .*:\d+: "):
        fit(grpo(tiny_model, [FunctionReward(broken)]), prompts(tmp_path), tmp_path / "fit", max_epochs=1)
    trainer = quiet_trainer(default_root_dir=tmp_path)
    with pytest.raises(PostTrainError, match="reward broken fails on every response"):
        trainer.validate(grpo(tiny_model, [FunctionReward(broken)]), datamodule=prompts(tmp_path, val_fraction=0.5))


def test_a_reward_that_breaks_down_ends_the_run_before_its_rollout_is_trained_on(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that goes on, with the reward mended, ends as one whose reward has always worked."""
    calls: list[int] = []

    def later(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        return [float(len(said)) if len(calls) < works else math.nan for said in completions]

    works = 99
    whole = grpo(tiny_model, [FunctionReward(later)])
    fit(whole, prompts(tmp_path), tmp_path / "whole", max_epochs=4)

    calls.clear()
    works = 3
    with pytest.raises(PostTrainError, match=r"reward later fails on every response, first on the prompt .*; mend it"):
        fit(
            grpo(tiny_model, [FunctionReward(later)]),
            prompts(tmp_path),
            tmp_path,
            LastCheckpoint(100),
            max_epochs=4,
            min_epochs=4,
        )
    assert f"step 2 is saved in {tmp_path / 'last.ckpt'}" in capsys.readouterr().out
    works = 99
    module = grpo(tiny_model, [FunctionReward(later)])
    again = quiet_trainer(LastCheckpoint(100), max_epochs=4, default_root_dir=tmp_path)
    again.fit(module, datamodule=prompts(tmp_path), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 4
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), whole.parameters(), strict=True))


def test_responses_without_a_score_are_told_once(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "some.jsonl"
    rows = [{"prompt": f"tell me about {i}", "answer": "a fox" if i % 2 else None} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptData(str(file), batch_size=4, cache_dir=str(tmp_path / "cache"), shuffle=False)
    fit(grpo(tiny_model, [ExactMatch()]), data, tmp_path)
    assert caplog.text.count("8 of 16 responses have no score and train nothing, first those to ") == 1


@pytest.mark.parametrize(("longest", "told"), [(2, 1), (200, 0)])
def test_responses_that_are_mostly_cut_off_are_told_of_once(
    longest: int, told: int, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(grpo(tiny_model, rollout={"max_new_tokens": longest, "seed": 1}), prompts(tmp_path), tmp_path, max_steps=2)
    assert sum("were cut off at 2 tokens" in r.getMessage() for r in caplog.records) == told


def _unanswered(folder: Path, name: str) -> str:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"tell me about {i}", "answer": None}) + "\n" for i in range(8)))
    return str(file)


def test_a_run_without_any_score_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    data = PromptData(_unanswered(tmp_path, "none"), batch_size=4, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(PostTrainError, match=r"none of the \d+ responses of this run has a score"):
        fit(grpo(tiny_model, [ExactMatch()]), data, tmp_path)


def test_a_run_that_had_scores_before_it_was_resumed_is_none(tiny_model: Path, tmp_path: Path) -> None:
    """What the last rollout lacks, those before it had."""
    rows = [{"prompt": f"tell me about {i}", "answer": "a fox" if i < 4 else None} for i in range(8)]
    (tmp_path / "half.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptData(str(tmp_path / "half.jsonl"), batch_size=4, shuffle=False, cache_dir=str(tmp_path / "cache"))
    half = {"rewards": [ExactMatch()]}
    fit(grpo(tiny_model, **half), data, tmp_path, LastCheckpoint(1), max_epochs=1)
    again = grpo(tiny_model, **half)
    trainer = fit(again, data, tmp_path, LastCheckpoint(1), ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 2
    assert np.isnan([rollout.total for rollout in again.collector.rollouts]).all()


def test_a_validation_without_any_score_is_said_as_what_it_is(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"tell me about {i}", "answer": "a fox"} for i in range(8)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = _unanswered(tmp_path, "none")
    data = PromptData(
        str(tmp_path / "all.jsonl"),
        val_path=held_out,
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
        val_fraction=0.0,
    )
    with pytest.raises(PostTrainError, match="no reward has a say on any response to the validation's prompts"):
        fit(grpo(tiny_model, [ExactMatch()]), data, tmp_path, BestCheckpoint("val/reward", "max"))


def test_an_engine_that_gives_too_little_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    def fewer(prompts: Any, n: int, sampling: Any, numbers: Any) -> Any:
        return [[Completion([5], [-1.0], "stop")] * (4 - number % 2) for number, _ in enumerate(prompts)]

    def nothing(prompts: Any, n: int, sampling: Any, numbers: Any) -> Any:
        return [[Completion([], [], "stop")] * 4 for _ in prompts]

    for answers, said in ((fewer, "fewer responses than it was asked for"), (nothing, "response without tokens")):
        module = grpo(tiny_model)
        module.collector.sampler.answers = answers  # type: ignore[method-assign]  # an engine that fails
        with pytest.raises(PostTrainError, match=said):
            fit(module, prompts(tmp_path), tmp_path)
