"""Runs of GRPO: validation, what is logged and shown, and what a checkpoint may be used for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers.on_policy import fit, grpo, letters, prompts
from helpers.runs import quiet_trainer

from lit_posttrain import Completion, PostTrainError
from lit_posttrain.callbacks import LastCheckpoint, RewardLogger
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.rewards import FunctionReward
from lit_posttrain.rollout.engine import Sampling


def test_a_dry_run_is_part_of_a_phase(tiny_model: Path, tmp_path: Path) -> None:
    trainer = fit(grpo(tiny_model), prompts(tmp_path, val_fraction=0.3), tmp_path, fast_dev_run=True)
    assert trainer.global_step == 1


def test_validation_answers_greedily_and_logs_rewards(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, drawn = grpo(tiny_model), set[tuple[bool, int, bool]]()
    answers = module.collector.sampler.answers

    def watched(asked: Any, n: int, sampling: Sampling, numbers: Any) -> list[list[Completion]]:
        drawn.add((module.trainer.training, n, sampling.temperature == 0))
        return answers(asked, n, sampling, numbers)

    monkeypatch.setattr(module.collector.sampler, "answers", watched)
    trainer = fit(module, prompts(tmp_path, 20, val_fraction=0.3), tmp_path, max_epochs=1)
    assert drawn == {(True, 4, False), (False, 1, True)}
    first = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
    assert first["val/reward"] == first["val/rewards/letters/mean"]
    assert first["val/reward/missing_ratio"] == 0


def test_the_reward_logger_shows_completions(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = grpo(tiny_model, [FunctionReward(letters), FunctionReward(lambda completions: [None] * len(completions))])
    fit(module, prompts(tmp_path), tmp_path, RewardLogger(show=5, every_n_phases=2), max_epochs=4)
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1] * 5 + [3] * 5
    for row in rows:
        assert row["reward"] == row["rewards/letters"] == len(row["response"])
        assert row["rewards/<lambda>"] is None
        assert "tell me about" in row["prompt"]
        assert row["source"].startswith(str(tmp_path))
    out = capsys.readouterr().out
    assert "completions at step 3 (5 in completions.jsonl):" in out
    assert "  best " in out


def test_rows_of_a_step_are_named_by_their_prompts(tiny_model: Path, tmp_path: Path) -> None:
    module, data = grpo(tiny_model), prompts(tmp_path)
    seen: list[tuple[list[str], list[str]]] = []

    class Names(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            sources = sorted({one.tree.source for one in pl_module.collector.rollouts if one.has_reward_variance})
            seen.append((sorted(data.row_sources(batch.example_ids)), sources))

    fit(module, data, tmp_path, Names())
    assert seen
    assert all(named == sources for named, sources in seen)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("rollout.group_size", {"rollout": {"group_size": 5}}),
        ("rollout.max_new_tokens", {"rollout": {"max_new_tokens": 9}}),
        ("clip.high", {"clip": Clip(high=0.3)}),
        ("baseline", {"baseline": "leave_one_out", "scale_rewards": "none"}),
        ("beta", {"beta": 0.2}),
        ("rewards", {"rewards": [FunctionReward(letters, weight=2.0)]}),
    ],
)
def test_resuming_with_other_options_is_refused(
    name: str, changed: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    fit(grpo(tiny_model), prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=1)
    trainer = quiet_trainer(max_epochs=2, default_root_dir=tmp_path)
    with pytest.raises(PostTrainError, match=f"trained with --model.{name} .* and this run has"):
        trainer.fit(grpo(tiny_model, **changed), datamodule=prompts(tmp_path), ckpt_path=tmp_path / "last.ckpt")


def test_resuming_on_other_prompts_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    fit(grpo(tiny_model), prompts(tmp_path), tmp_path, LastCheckpoint(1), max_epochs=1)
    others: list[tuple[dict[str, Any], str]] = [({"count": 13}, "the rows, or their tokens, have changed since")]
    others += [({"batch_size": 3}, "with batch_size=4")]
    for other, said in others:
        trainer = quiet_trainer(max_epochs=2, default_root_dir=tmp_path)
        with pytest.raises(PostTrainError, match=said):
            trainer.fit(grpo(tiny_model), datamodule=prompts(tmp_path, **other), ckpt_path=tmp_path / "last.ckpt")


def test_a_checkpoint_validates_and_trains_anew(tiny_model: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"count": 20, "val_fraction": 0.3}
    fit(grpo(tiny_model), prompts(tmp_path, **data), tmp_path, LastCheckpoint(1), max_epochs=1)
    module = grpo(tiny_model)
    trainer = quiet_trainer(default_root_dir=tmp_path)
    trainer.validate(module, datamodule=prompts(tmp_path, **data), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert fit(module, prompts(tmp_path, **data), tmp_path / "new", max_epochs=1).global_step == 1
