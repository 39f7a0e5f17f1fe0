"""Distillation of given responses: it learns from them as from sampled ones, and refuses what only samples have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cases import comparison_files
from helpers.distillation import CONSTANT, chats, distillation, same, weights
from helpers.on_policy import fit, grpo, letters, prompts

from lit_posttrain import SFT, ModelSpec, PostTrainError
from lit_posttrain.callbacks import LastCheckpoint, RewardHackingWatch, RewardLogger
from lit_posttrain.callbacks.plan_lines import plan
from lit_posttrain.rewards import FunctionReward
from lit_posttrain.rollout.engine import EngineSpec


def test_given_responses_are_learnt_from(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    module = distillation(tiny_model, teacher, beta=0.0, optim=CONSTANT)
    trainer = fit(module, chats(tmp_path, val_fraction=0.3), tmp_path, max_epochs=1, num_sanity_val_steps=0)
    first = float(trainer.callback_metrics["val/loss"])
    trainer = fit(module, chats(tmp_path, val_fraction=0.3), tmp_path, max_epochs=20, num_sanity_val_steps=0)
    assert trainer.callback_metrics["val/loss"] < 0.7 * first
    assert not any("completions" in name or "rollout" in name for name in trainer.callback_metrics)


def test_given_responses_go_on_after_a_resume(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    whole, begun, resumed = (distillation(tiny_model, teacher, optim=CONSTANT) for _ in range(3))
    fit(whole, chats(tmp_path), tmp_path, max_steps=5, max_epochs=-1)
    fit(begun, chats(tmp_path), tmp_path, LastCheckpoint(1), max_steps=2, max_epochs=-1)
    fit(resumed, chats(tmp_path), tmp_path, max_steps=5, max_epochs=-1, ckpt_path=tmp_path / "last.ckpt")
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"objective": "sampled"}, "objective sampled"), ({"student_share": 0.5}, r"student_share 0\.5")],
)
def test_options_of_sampling_refuse_given_responses(
    options: dict[str, Any], named: str, tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        PostTrainError, match=f"^--model.{named} samples responses and needs prompts: --data PromptData"
    ):
        fit(distillation(tiny_model, teacher, **options), chats(tmp_path), tmp_path)


def test_a_method_that_always_samples_names_itself(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match="GRPO samples responses and needs prompts: --data PromptData"):
        fit(grpo(tiny_model), chats(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        {"group_size": 4},
        {"inner_epochs": 2},
        {"minibatches": 2},
        {"mask_truncated": True},
        {"seed": 1},
        {"engine": EngineSpec(name="vllm")},
    ],
)
def test_options_of_rollouts_that_given_responses_have_not_are_refused(
    option: dict[str, Any], tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    told = (
        rf"^--model\.rollout\.{next(iter(option))} is about sampled responses, and those of this data are given: leave"
    )
    with pytest.raises(PostTrainError, match=told):
        fit(distillation(tiny_model, teacher, rollout=option), chats(tmp_path), tmp_path)


def test_rejected_answers_are_refused(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    told = "--data PreferenceData: Distillation learns from every answer, and this data has rejected ones; learn from"
    with pytest.raises(PostTrainError, match=told):
        fit(distillation(tiny_model, teacher), comparison_files(tmp_path), tmp_path)
    with pytest.raises(PostTrainError, match="--data PreferenceData: SFT learns from every answer"):
        fit(SFT(ModelSpec(str(tiny_model))), comparison_files(tmp_path), tmp_path)


def test_rewards_of_given_responses_are_refused(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"--model.rewards \(letters\) look at sampled answers, and those of this"):
        fit(distillation(tiny_model, teacher, rewards=[FunctionReward(letters)]), chats(tmp_path), tmp_path)


class Saved(pl.Callback):
    """At the beginning of every epoch the step of the checkpoint; and what the plan says of a batch."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.batch = ""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        file = Path(trainer.default_root_dir, "last.ckpt")
        self.steps.append(torch.load(file, weights_only=True)["global_step"] if file.exists() else 0)
        self.batch = dict(plan(trainer, pl_module))["batch"]


def test_epochs_over_given_responses_are_no_phases(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    seen = Saved()
    data = chats(tmp_path)
    fit(distillation(tiny_model, teacher), data, tmp_path, seen, LastCheckpoint(1000), max_epochs=3)
    assert seen.steps == [0, 3, 6]
    assert seen.batch.startswith("4 rows a step")
    sampled = Saved()
    fit(distillation(tiny_model, teacher), prompts(tmp_path), tmp_path / "sampled", sampled, LastCheckpoint(1000))
    assert sampled.steps == [0, 0]
    assert sampled.batch.startswith("4 prompts x 1 responses a phase")
    for callback, told in ((RewardHackingWatch(), "samples none here"), (RewardLogger(), "does not here")):
        with pytest.raises(PostTrainError, match=f"Distillation {told}: drop it"):
            fit(distillation(tiny_model, teacher), data, tmp_path, callback)
