"""Options and data that cannot be, or do not go together: one line, before the first step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers.on_policy import fit, grpo, prompts
from helpers.runs import quiet_trainer

from lit_posttrain import GRPO, SFT, ModelSpec, PostTrainError, PromptData
from lit_posttrain.callbacks import ReferenceSync
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.rewards import ExactMatch, FunctionReward, MathAnswer


def test_a_method_that_learns_from_scores_needs_a_reward(tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match=r"--model\.rewards is empty: GRPO learns from scores"):
        GRPO(ModelSpec(str(tiny_model)), [])


def test_one_prompt_is_not_prompts() -> None:
    with pytest.raises(PostTrainError, match="a step has 1 prompt x 2 responses for 4 micro-batches"):
        RolloutConfig(group_size=2).check_cut(1, 4, splits_groups=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rollout": {"group_size": 1}}, "group_size 1: a response is compared with others"),
        ({"rollout": {"temperature": 0.0}}, "--model.rollout.temperature is 0; it must be above 0"),
        ({"beta": -1.0}, "--model.beta is -1.0"),
        ({"reference": "cached"}, "--model.reference cached: responses are new every time"),
        ({"objective": "cispo", "clip": Clip(high=0.2)}, "take --model.ratio token, --model.clip.high 5"),
        ({"entropy": -0.1}, "--model.entropy is -0.1"),
        ({"epsilon": -1.0}, "--model.epsilon is -1.0"),
        ({"epsilon": math.nan}, "--model.epsilon is nan"),
        ({"beta": math.inf}, "--model.beta is inf"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str, tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match=said):
        grpo(tiny_model, **options)


@pytest.mark.parametrize(
    ("module", "data", "trainer", "said"),
    [
        ({"rollout": {"minibatches": 3}}, {}, {}, "no multiple of --model.rollout.minibatches 3"),
        (
            {"rollout": {"group_size": 2}},
            {"batch_size": 2},
            {"accumulate_grad_batches": 8},
            "2 prompts x 2 responses for 8",
        ),
        (
            {"rollout": {"max_new_tokens": 510}},
            {},
            {},
            r"prompts.jsonl:\d+: .* model takes 512; pass --data.max",
        ),
        (
            {"rewards": [ExactMatch("right")]},
            {},
            {},
            "prompts.jsonl:1: ExactMatch needs the column `right`, and there are prompt",
        ),
        (
            {"rewards": [FunctionReward(lambda completions, right, left=None, **_: [], name="mine")]},
            {},
            {},
            "prompts.jsonl:1: the reward function mine takes `right`, and the columns there are prompt",
        ),
        (
            {},
            {},
            {"limit_train_batches": 0.5},
            r"limit_train_batches \(or overfit_batches\) cuts a rollout short",
        ),
    ],
)
def test_what_does_not_go_together_is_said_at_the_start(
    module: dict[str, Any],
    data: dict[str, Any],
    trainer: dict[str, Any],
    said: str,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(PostTrainError, match=said):
        fit(grpo(tiny_model, **module), prompts(tmp_path, **data), tmp_path, **trainer)


def test_prompts_and_methods_that_do_not_go_together(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match="PromptData holds prompts without answers, and SFT learns from answers"):
        fit(SFT(ModelSpec(str(tiny_model))), prompts(tmp_path), tmp_path)


def test_a_column_that_only_another_file_has_is_missed_at_the_start(tiny_model: Path, tmp_path: Path) -> None:
    data = prompts(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"prompt": "what is it", "solution": "7"}\n')
    data = PromptData([str(tmp_path / "prompts.jsonl"), str(tmp_path / "other.jsonl")], cache_dir=str(tmp_path / "c"))
    with pytest.raises(PostTrainError, match=r"other.jsonl:1: ExactMatch needs the column `answer`"):
        fit(grpo(tiny_model, [ExactMatch()]), data, tmp_path)


def test_there_is_no_reference_to_move(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"ReferenceSync: there is no reference to move; --model\.beta above 0"):
        fit(grpo(tiny_model), prompts(tmp_path), tmp_path, ReferenceSync(1))


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_looks_at_the_rows_for_all(
    rank: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two could find different things, such as an answer that takes too long, and one would wait for the other."""
    module = grpo(tiny_model, [ExactMatch(), MathAnswer()])
    monkeypatch.setattr(GRPO, "global_rank", rank)
    monkeypatch.setattr(module.collector, "prepare", lambda stores: None)
    seen: list[str] = []
    monkeypatch.setattr(
        module.collector.rewards, "check_rows", lambda rows, skip: seen.extend(source for source, _ in rows)
    )
    data = prompts(tmp_path, 5, val_fraction=0.0)
    trainer = quiet_trainer(max_steps=1, default_root_dir=tmp_path)
    module.trainer = trainer
    monkeypatch.setattr(trainer, "datamodule", data, raising=False)
    data.trainer = trainer
    trainer.strategy.connect(module)
    data.setup("fit")
    module.check_data(data)
    assert len(seen) == (5 if rank == 0 else 0)
