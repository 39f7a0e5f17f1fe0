"""On-policy methods that learn from a judge: in this process and behind an endpoint, validated and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.judges import ScriptedBackend, choice, parts
from helpers.on_policy import fit, grpo, online_dpo, prompts
from helpers.on_policy import letters as letters_of

from lit_posttrain import PostTrainError
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.judges.backend import Call, CallFailed, Reply
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.rewards import FunctionReward, JudgeReward, judge


def letters(call: Call) -> Reply:
    """Marks a response by its letters."""
    return choice(**{str(min(len(parts(call)["response"]), 9)): 1.0})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """What stands for every endpoint."""
    backend = ScriptedBackend(letters)
    monkeypatch.setattr(judge, "Endpoint", lambda spec: backend)
    return backend


def marks(folder: Path, **options: Any) -> JudgeReward:
    """A judge behind an endpoint, with a cache of its own."""
    options = {"kind": "score", "cache_dir": str(folder / "replies"), **options}
    spec = JudgeSpec("any", "http://127.0.0.1:1/v1", **options)
    return JudgeReward(spec, name="judge")


def test_a_judge_in_this_process_is_a_frozen_model_beside_the_policy(tiny_model: Path, tmp_path: Path) -> None:
    roomy = tiny.save_model(tmp_path / "roomy", max_position_embeddings=8192)  # its tokens are short
    reward = JudgeReward(JudgeSpec(str(roomy), kind="score", cache_dir=str(tmp_path / "replies")), name="judge")
    module = grpo(tiny_model, [reward])
    trainer = fit(module, prompts(tmp_path, val_fraction=0.3), tmp_path)
    held = module.collector.frozen_weights["judge"]
    assert len(held) > 0
    assert not any(weight.requires_grad for weight in held)
    assert trainer.callback_metrics["train/rewards/judge/failed"] == 0
    assert 0 < trainer.callback_metrics["val/reward"] < 9


def test_one_that_compares_needs_another_reward_for_a_validation(
    tiny_model: Path, tmp_path: Path, asked: ScriptedBackend
) -> None:
    """Which answers every prompt once: that is known before training."""

    def longer(call: Call) -> Reply:
        shown = parts(call)
        return choice(A=0.9, B=0.1) if len(shown["response A"]) > len(shown["response B"]) else choice(A=0.1, B=0.9)

    asked.script = longer
    compares = marks(tmp_path, kind="pairwise")
    with pytest.raises(PostTrainError, match=r"one answer to each prompt, and --model.rewards \(judge\) compares"):
        fit(online_dpo(tiny_model, [compares]), prompts(tmp_path, val_fraction=0.3), tmp_path)
    alone = FunctionReward(letters_of, weight=0.0)
    module = online_dpo(tiny_model, [compares, alone])
    known = fit(module, prompts(tmp_path, val_fraction=0.3), tmp_path).callback_metrics
    assert known["train/compared"] > 0
    assert known["val/rewards/judge/failed"] == 0
    assert known["val/reward/missing_ratio"] == 1
    assert known["val/rewards/letters/mean"] > 0
    for one in module.collector.rollouts:
        lengths = [len(said.text) for said in one.trajectories]
        assert lengths[one.total.argmax()] == max(lengths)
        assert lengths[one.total.argmin()] == min(lengths)


def test_a_resumed_phase_asks_nothing_again(tiny_model: Path, tmp_path: Path, asked: ScriptedBackend) -> None:
    """Its scores are in the checkpoint; the run ends bitwise as the one that was not interrupted."""

    def run(steps: int, **options: Any) -> dict[str, torch.Tensor]:
        module = grpo(tiny_model, [marks(tmp_path)], rollout={"minibatches": 2})
        fit(module, prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=-1, max_steps=steps, **options)
        return module.state_dict()

    def calls() -> int:
        return len(asked.calls)

    whole = run(4)
    every = calls()
    (tmp_path / "replies" / "replies.sqlite").unlink()
    run(1)
    first = calls() - every
    (tmp_path / "replies" / "replies.sqlite").unlink()  # so that only the checkpoint has the scores of its phase
    ended = run(4, ckpt_path=tmp_path / "last.ckpt")
    assert calls() - every == every
    assert 0 < first < every
    assert all(torch.equal(ended[name], whole[name]) for name in whole)


def test_a_phase_that_is_sampled_again_is_judged_from_the_cache(
    tiny_model: Path, tmp_path: Path, asked: ScriptedBackend
) -> None:
    def run() -> JudgeReward:
        reward = marks(tmp_path)
        fit(grpo(tiny_model, [reward]), prompts(tmp_path), tmp_path, max_epochs=-1, max_steps=2)
        return reward

    run()
    before = len(asked.calls)
    again = run()
    assert len(asked.calls) == before > 0
    assert again.usage.cached >= before


def test_responses_without_a_verdict_are_masked_and_counted(
    tiny_model: Path, tmp_path: Path, asked: ScriptedBackend
) -> None:
    numbers = iter(range(1_000))

    def flaky(call: Call) -> Reply:
        if next(numbers) % 4 == 0:
            raise CallFailed("HTTP 500")
        return letters(call)

    asked.script = flaky
    module = grpo(tiny_model, [marks(tmp_path)])
    trainer = fit(module, prompts(tmp_path), tmp_path, max_epochs=-1, max_steps=1)
    assert 0 < trainer.callback_metrics["train/rewards/judge/failed"] < 1
    for one in module.collector.rollouts:
        for response, failed in zip(one.tree.responses, one.failed["judge"], strict=True):
            assert response.loss_mask.any() != failed
            assert ("reward" in response.labels) != failed
