"""What has no learning signal: groups whose rewards do not differ, and responses without a score or cut off."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cases import recorded
from helpers.on_policy import fit, grpo, letters, ones, online_dpo, prompts

from lit_posttrain import PPO, ModelSpec, RolloutConfig
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rewards import FunctionReward


class Logged(pl.Callback):
    """The metrics of every phase."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_dynamic_sampling_replaces_groups_without_a_signal(tiny_model: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def sometimes(prompts: Any, completions: list[str]) -> list[float]:
        asked.append(len(completions))
        numbers = [int(prompt[-1]["content"].rsplit(" ", 1)[1]) for prompt in prompts]
        return [float(len(said)) if number % 2 else 1.0 for said, number in zip(completions, numbers, strict=True)]

    seen = Logged()
    module = grpo(tiny_model, [FunctionReward(sometimes)], rollout={"dynamic_sampling_retries": 8})
    fit(module, prompts(tmp_path), tmp_path, seen, max_epochs=1)
    assert len(asked) > 1
    assert len(module.collector.rollouts) == 4
    assert all(one.has_reward_variance for one in module.collector.rollouts)
    assert seen.rows[0]["train/frac_reward_zero_std"] > 0, "the metric is of all that was sampled"
    asked.clear()

    class Shaped(FunctionReward):
        shaping = True

    def right(completions: list[str]) -> list[float]:
        asked.append(len(completions))
        return [1.0] * len(completions)

    rewards = [FunctionReward(right), Shaped(letters)]
    shaped = grpo(tiny_model, rewards, rollout={"dynamic_sampling_retries": 1})
    fit(shaped, prompts(tmp_path), tmp_path / "shaped", seen, max_epochs=1)
    assert any(one.has_reward_variance for one in shaped.collector.rollouts)
    assert not any(one.has_signal for one in shaped.collector.rollouts)
    assert asked == [16, 16], "its one further attempt is made, for all of the prompts"
    never = grpo(
        tiny_model,
        [FunctionReward(lambda completions: [1.0] * len(completions))],
        rollout={"dynamic_sampling_retries": 2},
    )
    trainer = fit(never, prompts(tmp_path), tmp_path / "never", max_epochs=1)
    assert trainer.global_step == 1, "a rollout without a signal is a step all the same"
    assert len(never.collector.rollouts) == 4


def test_groups_without_a_signal_change_no_gradient(tiny_model: Path, tmp_path: Path) -> None:
    """They are left out of the computation, and stay in its denominators."""

    def odd(prompts: Any, completions: list[str]) -> list[float]:
        numbers = [int(prompt[-1]["content"].rsplit(" ", 1)[1]) for prompt in prompts]
        return [float(len(said)) * (number % 2) for said, number in zip(completions, numbers, strict=True)]

    found = []
    for everything in (False, True):
        module = grpo(
            tiny_model,
            [FunctionReward(odd)],
            optim=Optim(lr=0.5, optimizer="SGD", schedule="constant", warmup_ratio=0.0),
        )
        if everything:
            module.has_gradient = lambda tree: True  # type: ignore[method-assign]  # as if it were not left out
        fit(module, prompts(tmp_path, shuffle=False), tmp_path, max_epochs=1)
        found.append({name: p.detach().clone() for name, p in module.named_parameters()})
    start = grpo(tiny_model)
    start.configure_model()
    assert any(not torch.equal(p, found[0][name]) for name, p in start.named_parameters())
    for name, weight in found[0].items():
        assert torch.allclose(weight, found[1][name], atol=1e-6), name


def test_what_has_no_score_trains_nothing(tiny_model: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        if len(completions) == 1 and len(calls) % 3 == 0:
            raise RuntimeError("no connection")
        if len(completions) > 1:
            raise RuntimeError("too many at once")
        return [float(len(completions[0]))]

    seen = Logged()
    module = grpo(tiny_model, [FunctionReward(broken)])
    fit(module, prompts(tmp_path), tmp_path, seen, max_epochs=1, log_every_n_steps=1)
    row = seen.rows[0]
    assert row["train/reward/missing_ratio"] == row["train/rewards/broken/failed"] > 0.2
    for one in module.collector.rollouts:
        for response in one.tree.responses:
            assert response.loss_mask.any() == ("reward" in response.labels)


def test_masked_responses_are_in_no_mean_of_the_kl(tiny_model: Path, tmp_path: Path) -> None:
    module = grpo(tiny_model, rollout={"inner_epochs": 2, "mask_truncated": True}, beta=0.1)
    module.collector.sampler.answers = lambda prompts, n, *_: recorded(prompts, n)  # type: ignore[method-assign]  # some end
    trainer = fit(module, prompts(tmp_path), tmp_path, max_epochs=1)
    counted = [r for one in module.collector.rollouts for r in one.tree.responses if r.loss_mask.any()]
    assert 0 < len(counted) < 16, "some responses are cut off, and some are not"
    found = module.kl.take()
    assert found is not None
    assert found[1] == len(counted)
    assert trainer.global_step == 2


EQUAL = r"nothing was learnt from \d+ prompts: the responses to each had equal scores"


def _told(caplog: pytest.LogCaptureFixture, pattern: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if re.search(pattern, record.getMessage())]


@pytest.mark.parametrize("method", ["grpo", "online_dpo"])
def test_equal_scores_are_told_of_early_and_at_the_end(
    method: str, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = {"grpo": grpo, "online_dpo": online_dpo}[method]
    module = make(tiny_model, [FunctionReward(ones)], rollout={"dynamic_sampling_retries": 1})
    fit(module, prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=4)
    told = _told(caplog, EQUAL)
    assert [line.split(":")[0] for line in told] == [f"nothing was learnt from {n} prompts" for n in (24, 32)]
    assert "equal scores (1 on average)" in told[0]
    caplog.clear()
    again = make(tiny_model, [FunctionReward(ones)], rollout={"dynamic_sampling_retries": 1})
    fit(again, prompts(tmp_path), tmp_path, max_epochs=5, ckpt_path=tmp_path / "last.ckpt")
    assert "from 40 prompts" in _told(caplog, EQUAL)[0], "the counts go on"


def test_scores_that_differ_are_not_told_of(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(grpo(tiny_model), prompts(tmp_path), tmp_path, max_epochs=3)
    assert not _told(caplog, "nothing was learnt")


def test_a_critic_learns_from_equal_scores(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rollout = RolloutConfig(group_size=1, max_new_tokens=8)
    fit(PPO(ModelSpec(str(tiny_model)), [FunctionReward(ones)], rollout=rollout), prompts(tmp_path), tmp_path)
    assert not _told(caplog, "nothing was learnt")


def test_a_run_of_which_everything_is_cut_off_and_left_out_is_told_of(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(grpo(tiny_model, rollout={"max_new_tokens": 1, "mask_truncated": True}), prompts(tmp_path), tmp_path)
    assert _told(caplog, "nothing was learnt from 32 responses: all were cut off, and --model.rollout.mask_truncated")


def test_rewards_that_only_measure_are_refused(tiny_model: Path) -> None:
    told = r"--model.rewards: all have the weight 0 \(ones\), which measures and teaches nothing, and GRPO learns from"
    with pytest.raises(PostTrainError, match=told):
        grpo(tiny_model, [FunctionReward(ones, weight=0)])
    grpo(tiny_model, [FunctionReward(ones, weight=0), FunctionReward(letters)])


def test_a_run_without_scores_ends_after_its_first_rollouts(tiny_model: Path, tmp_path: Path) -> None:
    def nothing(completions: list[str]) -> list[None]:
        return [None] * len(completions)

    def run(**options: Any) -> None:
        fit(
            grpo(tiny_model, [FunctionReward(nothing)]),
            prompts(tmp_path),
            tmp_path,
            LastCheckpoint(1),
            limit_val_batches=0,  # or the Trainer would begin with the validation of the last step
            **options,
        )

    told = "none of the 48 responses of this run has a score, so nothing was learnt: nothing gave None for each"
    for options in ({}, {"ckpt_path": tmp_path / "last.ckpt"}):
        with pytest.raises(PostTrainError, match=told):
            run(max_epochs=1000, **options)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    with pytest.raises(PostTrainError, match="none of the 32 responses of this run has a score"):
        run(max_steps=2, ckpt_path=tmp_path / "last.ckpt")  # no step is left, and nothing was learnt
