"""When last.ckpt and best.ckpt are written, and what is in them."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lit_posttrain.callbacks import BestCheckpoint, LastCheckpoint, run_checkpoints
from lit_posttrain.errors import PostTrainError

Usage = namedtuple("Usage", "total used free")


class Saves(LastCheckpoint):
    """Notes (global_step, micro-batches into the epoch) of every save."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps)
        self.at: list[tuple[int, int]] = []

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        saved = torch.load(Path(trainer.default_root_dir) / "last.ckpt", weights_only=True)
        progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        self.at.append((saved["global_step"], progress["current"]["processed"]))


def score(folder: Path) -> tuple[int, float]:
    saved = torch.load(folder / "best.ckpt", weights_only=True)
    state = next(v for k, v in saved["callbacks"].items() if k.startswith("BestCheckpoint"))
    return saved["global_step"], state["best_score"]


class Scores(pl.Callback):
    """Logs a given value at each validation."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("val/score", self.values.pop(0))


def test_saves_at_steps_epoch_ends_and_the_end(fit_in: Any, tmp_path: Path) -> None:
    last = Saves(3)
    fit_in(tmp_path, [last], max_steps=13, max_epochs=-1)
    assert last.at == [(3, 9), (5, 15), (6, 3), (9, 12), (10, 15), (12, 6), (13, 9)]


def test_validation_refreshes_what_was_saved_just_before(fit_in: Any, tmp_path: Path) -> None:
    last = Saves(100)
    fit_in(tmp_path, [last], max_epochs=2, validate=True, val_check_interval=6)
    assert last.at == [(5, 15), (10, 15)]  # 2 and 4 are validated, and not saved
    last = Saves(4)
    fit_in(tmp_path, [last], max_epochs=1, validate=True, val_check_interval=6)
    assert last.at == [(4, 12), (4, 12), (5, 15)]


def test_no_save_inside_an_accumulation_after_a_resume(fit_in: Any, tmp_path: Path) -> None:
    """Lightning's ModelCheckpoint saves after the first micro-batch of step 4 here: step 3 is not yet in its memory."""
    fit_in(tmp_path, [LastCheckpoint(3)], max_steps=3, max_epochs=-1)
    last = Saves(3)
    fit_in(tmp_path, [last], max_steps=6, max_epochs=-1, resume=tmp_path / "last.ckpt")
    assert last.at == [(5, 15), (6, 3)]


def test_best_follows_the_metric_over_resumes(fit_in: Any, tmp_path: Path) -> None:
    best = run_checkpoints(100, "val/score")
    run = fit_in(tmp_path, [Scores(2.0, 1.0, float("nan"), 1.5), *best], max_epochs=4, validate=True)
    assert score(tmp_path) == (10, 1.0)
    assert run.trainer.checkpoint_callback.best_model_path == str(tmp_path / "best.ckpt")
    resumed = {"validate": True, "resume": tmp_path / "last.ckpt"}
    fit_in(tmp_path, [Scores(1.2), *run_checkpoints(100, "val/score")], max_epochs=5, **resumed)
    assert score(tmp_path) == (10, 1.0)
    fit_in(tmp_path, [Scores(0.5), *run_checkpoints(100, "val/score")], max_epochs=6, **resumed)
    assert score(tmp_path) == (30, 0.5)


def test_best_can_be_the_highest(fit_in: Any, tmp_path: Path) -> None:
    fit_in(tmp_path, [Scores(0.1, 0.3, 0.2), BestCheckpoint("val/score", "max")], max_epochs=3, validate=True)
    step, best = score(tmp_path)
    assert step == 10
    assert best == pytest.approx(0.3)


def test_unknown_monitor_names_the_known(fit_in: Any, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"--monitor val/judge: not a metric .* one of: val/entropy, val/loss"):
        fit_in(tmp_path, run_checkpoints(100, "val/judge"), max_epochs=1, validate=True)
    assert (tmp_path / "last.ckpt").exists(), "what was trained is not lost"


def test_a_metric_of_somebodys_own_may_be_monitored(fit_in: Any, tmp_path: Path) -> None:
    class Own(pl.Callback):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.log("val/losses", 1.0)

    fit_in(tmp_path, [*run_checkpoints(100, "val/losses"), Own()], max_epochs=1, validate=True)
    assert (tmp_path / "best.ckpt").exists()


def test_no_validation_no_best(fit_in: Any, tmp_path: Path) -> None:
    fit_in(tmp_path, run_checkpoints(), max_epochs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_fast_dev_run_leaves_nothing(fit_in: Any, tmp_path: Path) -> None:
    fit_in(tmp_path, run_checkpoints(1), fast_dev_run=2, validate=True, accumulate_grad_batches=1)
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_stops_before_training(fit_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and two Adam states, three times: last, best, and the copy while one is replaced."""
    fit_in(tmp_path / "first", run_checkpoints(), max_steps=1, max_epochs=-1)
    one = (tmp_path / "first/last.ckpt").stat().st_size
    free = Usage(0, 0, round(2.5 * one))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    assert fit_in(tmp_path / "no_best", run_checkpoints(), max_steps=1, max_epochs=-1).trainer.global_step == 1
    with pytest.raises(PostTrainError, match=r"too little disk for the run's checkpoints \(last\.ckpt, best\.ckpt\)"):
        fit_in(tmp_path / "with_best", run_checkpoints(), max_steps=1, max_epochs=-1, validate=True)
    assert not (tmp_path / "with_best/last.ckpt").exists()


def test_saving_never_is_refused() -> None:
    with pytest.raises(PostTrainError, match="--checkpoint_every is 0"):
        LastCheckpoint(0)
