"""Rewards at every validation: distributions that agree with the metrics, pairs worth reading, files that resume."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cases import METHODS, build, comparison_files, feedback_files, ranked_files
from lightning.pytorch.loggers import WandbLogger

from lit_posttrain import DPO, KTO, SFT, ModelSpec, PostTrainError, PreferenceData, RewardModel
from lit_posttrain.callbacks import AtomicCheckpointIO, LastCheckpoint, RewardLogger
from lit_posttrain.callbacks.reward_plot import draw
from lit_posttrain.callbacks.reward_summary import summarise, telling_pairs
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.types import RewardedResponses


def trainer_in(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    defaults: dict[str, Any] = {"logger": False, "max_steps": 2, "val_check_interval": 2, "num_sanity_val_steps": 1}
    if not any(isinstance(c, LastCheckpoint) for c in callbacks):
        defaults["enable_checkpointing"] = False
    return pl.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder / "run",
        plugins=[AtomicCheckpointIO()],
        callbacks=list(callbacks),
        **{**defaults, **options},
    )


def with_validation(data: pl.LightningDataModule) -> Any:
    loosely: Any = data
    loosely.val_fraction, loosely.eval_batch_size = 0.4, 4
    return loosely


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("method", ["reward", "dpo", "simpo", "orpo", "kto"])
def test_distributions_agree_with_the_metrics_of_every_method(method: str, tiny_model: Path, tmp_path: Path) -> None:
    data = with_validation(METHODS[method].data(tmp_path))
    trainer, module = trainer_in(tmp_path, RewardLogger()), build(method, tiny_model)
    module.optim = replace(module.optim, lr=1e-2, weight_decay=0.01, warmup_ratio=0.0)
    trainer.fit(module, datamodule=data)
    (row,) = rows_of(tmp_path / "run" / "rewards.jsonl")
    assert (row["step"], row["data"]) == (2, "held_out")
    for name in ("chosen", "rejected", "margins"):
        if method == "kto" and name == "margins":  # of means there, and no pair has one
            assert row[name] is None
            continue
        logged = float(trainer.callback_metrics[f"val/rewards/{name}"])
        assert abs(logged) > 1e-3, "figures of nothing would agree with anything"
        assert row[name]["mean"] == pytest.approx(logged, rel=1e-5, abs=1e-7)
        assert sum(row[name]["histogram"]["counts"]) == row[name]["count"]
    if method == "reward":
        assert row["ece"] == pytest.approx(float(trainer.callback_metrics["val/ece"]), abs=1e-5)
    assert (tmp_path / "run" / "rewards.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "run").glob("*.part"))


def test_examples_are_the_extremes_and_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = with_validation(comparison_files(tmp_path))
    module = RewardModel(ModelSpec(str(tiny_model)))
    trainer = trainer_in(tmp_path, RewardLogger(show=2))
    trainer.fit(module, datamodule=data)
    rows = rows_of(tmp_path / "run" / "reward_examples.jsonl")
    store = data.val_stores["held_out"]
    margins = {}
    with torch.no_grad():
        for batch in data.val_dataloader()[0]:
            scores = module.scores(batch)
            for tree, row in enumerate(batch.example_ids):
                chosen, rejected = scores[batch.response_tree == tree]
                margins[store.sources([row])[0]] = float(chosen - rejected)
    by_margin = sorted(margins, key=lambda source: margins[source])
    picked = {kind: [r["source"] for r in rows if r["kind"] == kind] for kind in ("clear", "wrong", "close")}
    assert picked["clear"] == by_margin[-1:-3:-1]
    assert picked["wrong"] == by_margin[:2]
    assert picked["close"] == sorted(margins, key=lambda source: abs(margins[source]))[:2]
    for row in rows:
        file, line = row["source"].rsplit(":", 1)
        written = json.loads(Path(file).read_text().splitlines()[int(line) - 1])
        assert (row["chosen"], row["rejected"]) == (written["chosen"], written["rejected"])
        assert written["prompt"] in row["prompt"]
        assert row["margin"] == pytest.approx(margins[row["source"]], abs=1e-5)
        assert row["margin"] == pytest.approx(row["reward_chosen"] - row["reward_rejected"], abs=1e-5)
    printed = capsys.readouterr().out
    assert printed.count("rewards at step 2:\n  held_out: chosen ") == 1
    assert f"    clear {rows[0]['margin']:+.3g}  {rows[0]['source']}\n" in printed


def test_kinds_by_hand() -> None:
    margin = torch.tensor([0.5, -1.0, 0.0, 2.0, torch.nan, -0.1, 0.5])
    picked = telling_pairs(margin, 3)
    assert [pair for kind, pair in picked if kind == "clear"] == [3, 0, 6]
    assert [pair for kind, pair in picked if kind == "wrong"] == [1, 5]
    assert [pair for kind, pair in picked if kind == "close"] == [2, 5, 0]


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    def integers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64)

    found = RewardedResponses(
        rewards=torch.tensor([1.0, 0.0, torch.nan, 0.0, 3.0]),
        rows=integers(0, 0, 1, 1, 2),
        places=integers(0, 1, 0, 1, 0),
        desirable=torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]),
        first=integers(0, 2),
        second=integers(1, 3),
        flip_prob=torch.zeros(2),
    )
    row = summarise(found, "x").as_row(7)
    assert (row["chosen"]["count"], row["chosen"]["not_finite"], row["chosen"]["mean"]) == (2, 1, 2.0)
    assert (row["pairs"], row["margins"]["count"], row["margins"]["not_finite"]) == (2, 1, 1)
    assert row["margins"]["quantiles"]["0.5"] == 1.0
    assert row["ece"] == pytest.approx(1 - 1 / (1 + np.exp(-1.0)), abs=1e-5)
    found.rewards[:] = torch.nan
    assert summarise(found, "x").as_row(7)["chosen"] == {"count": 0, "not_finite": 3}, "which is not the same as none"
    assert json.loads(json.dumps(row)) == row


def test_parts_are_joined_with_their_pairs() -> None:
    one = torch.arange(2)
    part = RewardedResponses(one.float(), one, one, one.float(), one[:1], one[1:], torch.zeros(1))
    whole = RewardedResponses.joined([part, part])
    assert (whole.first.tolist(), whole.second.tolist(), len(whole.rewards)) == ([0, 2], [1, 3], 4)


def test_rankings_and_single_responses(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, RewardLogger(show=1))
    trainer.fit(DPO(ModelSpec(str(tiny_model))), datamodule=with_validation(ranked_files(tmp_path)))
    (row,) = rows_of(tmp_path / "run" / "rewards.jsonl")
    assert row["pairs"] == row["chosen"]["count"] == row["rejected"]["count"] != row["responses"]
    single = trainer_in(tmp_path / "single", RewardLogger())
    single.fit(KTO(ModelSpec(str(tiny_model))), datamodule=with_validation(feedback_files(tmp_path)))
    (row,) = rows_of(tmp_path / "single" / "run" / "rewards.jsonl")
    assert row["chosen"]["count"] + row["rejected"]["count"] == row["responses"]
    assert row["pairs"] == 0
    assert (tmp_path / "single" / "run" / "reward_examples.jsonl").exists() is False


def test_repeated_steps_replace_their_rows_and_validate_leaves_them(tiny_model: Path, tmp_path: Path) -> None:
    def fit(folder: Path, steps: int, resume: Path | None = None) -> pl.Trainer:
        trainer = trainer_in(folder, RewardLogger(), LastCheckpoint(2), max_steps=steps, val_check_interval=1)
        data = with_validation(comparison_files(tmp_path))
        module = DPO(ModelSpec(str(tiny_model)), optim=Optim(schedule="constant", warmup_ratio=0.0))
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        return trainer

    fit(tmp_path / "short", 2)
    fit(tmp_path, 4)
    files = [tmp_path / "run" / name for name in ("rewards.jsonl", "reward_examples.jsonl")]
    whole = [file.read_text() for file in files]
    assert [row["step"] for row in rows_of(files[0])] == [1, 2, 3, 4]
    fit(tmp_path, 3, resume=tmp_path / "short" / "run" / "last.ckpt")
    assert [row["step"] for row in rows_of(files[0])] == [1, 2, 3]
    for file, before in zip(files, whole, strict=True):
        assert before.startswith(file.read_text())
    training = files[0].read_text()
    for _ in range(2):
        measuring = trainer_in(tmp_path, RewardLogger())
        measuring.validate(
            DPO(ModelSpec(str(tiny_model))), datamodule=with_validation(comparison_files(tmp_path)), verbose=False
        )
        assert [row["step"] for row in rows_of(tmp_path / "run" / "validate_rewards.jsonl")] == [None]
    assert files[0].read_text() == training


def test_several_data_sets_and_weights_and_biases(tiny_model: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / f"pairs-{n}.jsonl") for n in range(3)]
    comparison_files(tmp_path)
    data = PreferenceData(files[0], val_path=files[1:], batch_size=7, cache_dir=str(tmp_path / "cache"))
    logged: list[tuple[str, Any]] = []

    class Recording(WandbLogger):
        def __init__(self) -> None:
            super().__init__(mode="disabled", save_dir=str(tmp_path))

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            logged.extend(metrics.items())

        def log_table(self, key: str, *args: Any, **kwargs: Any) -> None:
            logged.append((key, kwargs))

    trainer = trainer_in(tmp_path, RewardLogger(show=1), logger=Recording())
    trainer.fit(RewardModel(ModelSpec(str(tiny_model))), datamodule=data)
    named = dict(logged)
    assert {r["data"] for r in rows_of(tmp_path / "run" / "rewards.jsonl")} == {"pairs-1", "pairs-2"}
    for name in ("chosen", "rejected", "margins"):
        assert sum(named[f"val/pairs-2/rewards/{name}_histogram"].histogram) == 17
    table = named["reward_examples"]
    assert {row[table["columns"].index("data")] for row in table["data"]} == {"pairs-1", "pairs-2"}


def test_mistakes_are_said_before_training(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match="or from responses that it samples, and SFT does not here: drop it"):
        trainer_in(tmp_path, RewardLogger()).fit(
            SFT(ModelSpec(str(tiny_model))), datamodule=METHODS["sft"].data(tmp_path)
        )
    with pytest.raises(PostTrainError, match=r"hold rows out with --data\.val_fraction"):
        trainer_in(tmp_path, RewardLogger()).fit(DPO(ModelSpec(str(tiny_model))), datamodule=comparison_files(tmp_path))
    with pytest.raises(PostTrainError, match="show is -1"):
        RewardLogger(show=-1)


def test_without_matplotlib_it_says_so_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    trainer = trainer_in(tmp_path, RewardLogger(), max_steps=3, val_check_interval=1)
    trainer.fit(DPO(ModelSpec(str(tiny_model))), datamodule=with_validation(comparison_files(tmp_path)))
    assert [record.message for record in caplog.records].count(
        "no matplotlib, so no rewards.png: `pip install matplotlib`; rewards.jsonl has the figures"
    ) == 1
    assert len(rows_of(tmp_path / "run" / "rewards.jsonl")) == 3
    assert not (tmp_path / "run" / "rewards.png").exists()


def test_a_picture_that_cannot_be_drawn_ends_no_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lit_posttrain.callbacks.reward_logging.draw", full)
    trainer = trainer_in(tmp_path, RewardLogger(), max_steps=3, val_check_interval=1)
    trainer.fit(DPO(ModelSpec(str(tiny_model))), datamodule=with_validation(comparison_files(tmp_path)))
    assert caplog.text.count("rewards.png could not be drawn (no space left)") == 1
    assert trainer.global_step == 3


def test_names_of_data_are_no_formulas(tmp_path: Path) -> None:
    one = torch.arange(2)
    part = RewardedResponses(one.float(), one, one, one.float(), one[1:], one[:1], torch.zeros(1))
    draw([summarise(part, r"cost_$5_vs_$\oops")], "rewards", tmp_path / "rewards.png")


def test_a_dry_run_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, RewardLogger(), fast_dev_run=True)
    trainer.fit(DPO(ModelSpec(str(tiny_model))), datamodule=with_validation(comparison_files(tmp_path)))
    assert not (tmp_path / "run").exists()
