"""The rewards of a resumed run: what decides their scores is compared, and no key or object is saved."""

from __future__ import annotations

import inspect
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers.on_policy import fit, grpo, letters, prompts
from helpers.runs import quiet_trainer

from lit_posttrain import SFT, ModelSpec, PostTrainError, rewards
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.core.resume import require_same_options, saved_options
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.rewards import ExactMatch, JsonValid, JudgeReward, Regex, Reward, RewardBatch, RewardModelScore


def test_resuming_with_other_options_of_a_reward_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    before = grpo(tiny_model, [Regex("a+", name="r"), ExactMatch("answer", name="e")]).method_options
    for other, said in (
        ([Regex("b+", name="r"), ExactMatch("answer", name="e")], "--model.rewards.r.pattern a+ and this run has b+"),
        (
            [Regex("a+", name="r"), ExactMatch("gold", name="e")],
            "--model.rewards.e.column answer and this run has gold",
        ),
        ([Regex("a+", True, name="r"), ExactMatch("answer", name="e")], "--model.rewards.r.whole False"),
        ([Regex("a+", weight=2.0, name="x")], "--model.rewards 1 x r, 1 x e and this run has 2 x x"),
    ):
        with pytest.raises(PostTrainError, match=re.escape(said)):
            require_same_options(saved_options(before), grpo(tiny_model, other).method_options)


class Judge(Reward):
    """Where it asks, and by what key, decides no score."""

    def __init__(self, url: str, api_key: str = "", words: Any = None) -> None:
        super().__init__()
        self.url, self.api_key = url, api_key
        self.words = words
        self.options = {"retries": 3}

    def score(self, batch: RewardBatch) -> list[float]:
        return [float(len(said)) for said in batch.responses]


def test_a_run_goes_on_with_a_reward_of_ones_own_that_asks_elsewhere(tiny_model: Path, tmp_path: Path) -> None:
    """And its checkpoint holds neither objects, which could not be read again, nor keys."""
    judge = Judge("http://one", "a-key", [re.compile("a+")])
    fit(grpo(tiny_model, [judge]), prompts(tmp_path), tmp_path, LastCheckpoint(100), max_epochs=-1, max_steps=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["lit_posttrain"]["options"]["rewards"] == "1 x judge"
    assert b"a-key" not in (tmp_path / "last.ckpt").read_bytes()
    trainer = quiet_trainer(max_epochs=-1, max_steps=2, default_root_dir=tmp_path)
    later = grpo(tiny_model, [Judge("http://two", "another")])
    trainer.fit(later, datamodule=prompts(tmp_path), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert trainer.global_step == 2


def test_no_object_is_saved_among_the_options_of_a_method(tiny_model: Path, tmp_path: Path) -> None:
    class Grade(StrEnum):
        A = "a"

    class Own(SFT):
        def __init__(self, policy: ModelSpec, given: Any = None, kept: Any = None) -> None:
            super().__init__(policy)
            self.given, self.kept = given, kept

    for given in (np.float64(0.5), Grade.A, [re.compile("a")], {"a": [np.float64(1)]}, {1: 2}, (1, 2), {"a"}):
        assert "given" not in saved_options(Own(ModelSpec(str(tiny_model)), given).method_options)
    hidden = saved_options(Own(ModelSpec(str(tiny_model)), kept={"api_key": "a-key"}).method_options)["kept"]
    assert "a-key" not in str(hidden)
    kept = {"a": [1, 0.5, None, True, "x"]}
    assert saved_options(Own(ModelSpec(str(tiny_model)), kept=kept).method_options)["kept"] == kept


# arguments of rewards that change nothing of what their scores mean
COMPUTED = {"weight", "name", "batch_size", "bfloat16", "trust_remote_code"}


GIVEN: dict[str, Any] = {"column": "c", "pattern": "p", "keys": ["k"], "limit": 8, "buffer": 4, "n": 2}
GIVEN |= {"path": "owner/model", "function": letters, "ignore_case": True, "whole": True}
GIVEN |= {"judge": JudgeSpec("owner/model")}
# how a judge is reached, how soon it answers, and what it may cost
REACHED = {"endpoint", "api_key_env", "timeout_s", "retries", "limits", "budget", "cache_dir", "trust_remote_code"}
KINDS = [
    kind for kind in vars(rewards).values() if inspect.isclass(kind) and issubclass(kind, Reward) and kind != Reward
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_decides_the_score_of_every_reward_is_compared(kind: type[Reward]) -> None:
    own = [one for one in inspect.signature(kind).parameters if one not in COMPUTED]
    said = {**GIVEN, "function": "letters"}
    if kind is JudgeReward:  # the fields of its spec, of which a file's stands for what is in it
        assert set(JudgeReward(GIVEN["judge"]).resume_options()) == set(vars(GIVEN["judge"])) - REACHED
        return
    assert kind(**{one: GIVEN[one] for one in own}).resume_options() == {one: said[one] for one in own}


@pytest.mark.parametrize("kind", KINDS)
def test_no_option_of_a_reward_is_hidden_from_a_resumed_run(kind: type[Reward], tiny_model: Path) -> None:
    own = [one for one in inspect.signature(kind).parameters if one not in COMPUTED]
    module = grpo(tiny_model, [reward := kind(**{one: GIVEN[one] for one in own})])
    for option, value in reward.resume_options().items():
        assert saved_options(module.method_options)[f"rewards.{reward.name}.{option}"] == value


def test_a_run_goes_on_with_the_same_keys_alone(tiny_model: Path, tmp_path: Path) -> None:
    def go_on(keys: list[str], steps: int, **more: Any) -> pl.Trainer:
        trainer = quiet_trainer(LastCheckpoint(100), max_epochs=-1, max_steps=steps, default_root_dir=tmp_path)
        trainer.fit(grpo(tiny_model, [JsonValid(keys)]), datamodule=prompts(tmp_path), **more)
        return trainer

    go_on(["answer"], 1)
    resumed = {"ckpt_path": str(tmp_path / "last.ckpt"), "weights_only": True}
    with pytest.raises(PostTrainError, match=r"rewards.jsonvalid.keys \['answer'\] and this run has \['solution'\]"):
        go_on(["solution"], 2, **resumed)
    assert go_on(["answer"], 2, **resumed).global_step == 2


def test_the_reward_model_of_a_run_is_the_same_from_any_folder(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert RewardModelScore(tiny_model.name).resume_options() == {"path": str(tiny_model.resolve())}
