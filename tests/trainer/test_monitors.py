"""Which value of a metric is the best, and names of metrics that nobody logs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from cases import METHODS, build
from helpers.cli import one_line
from helpers.runs import quiet_trainer
from helpers.trainer import checkpoint, metrics
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_posttrain import GRPO, SFT, RewardModel
from lit_posttrain.core.directions import direction_of
from lit_posttrain.errors import PostTrainError

Fit = Callable[..., int]

# what says neither that it is good nor that it is bad
UNDIRECTED = (
    "entropy",
    "kl",
    "kl/*",
    "logps/*",
    "rewards/chosen",
    "rewards/rejected",
    "completions/*",
    "length/score_correlation",
    "length/longer_*",
)


@pytest.mark.parametrize("method", METHODS)
def test_every_metric_of_a_validation_has_a_direction_or_none_on_purpose(
    method: str, tiny_model: Path, tmp_path: Path
) -> None:
    from fnmatch import fnmatchcase

    module, data = build(method, tiny_model), METHODS[method].data(tmp_path)
    data.val_fraction = 0.3  # type: ignore[attr-defined]  # every data module of the cases has it
    trainer = quiet_trainer(max_steps=1, max_epochs=1, val_check_interval=1, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=data)
    validated = [name for name in trainer.callback_metrics if name.startswith("val/")]
    assert module.monitored in validated
    for name in validated:
        wanted = not any(fnmatchcase(name.removeprefix("val/"), pattern) for pattern in UNDIRECTED)
        assert (direction_of(type(module), name) is not None) == wanted, name


@pytest.mark.parametrize(
    ("method", "metric", "best"),
    [
        (SFT, "val/loss", "min"),
        (SFT, "val/held_out/loss", "min"),
        (SFT, "val/mean_token_accuracy", "max"),
        (SFT, "val/entropy", None),
        (GRPO, "val/reward", "max"),
        (GRPO, "val/rewards/MathAnswer/mean", "max"),
        (GRPO, "train/loss", "min"),
        (RewardModel, "val/rewards/accuracies", "max"),
        (RewardModel, "val/ece", "min"),
        (RewardModel, "val/loss", "min"),
    ],
)
def test_directions(method: Any, metric: str, best: Literal["min", "max"] | None) -> None:
    assert direction_of(method, metric) == best


def test_monitor_keeps_the_best_of_a_metric_whose_highest_value_is(fit: Fit) -> None:
    """The accuracy of a tiny model that learns for some epochs goes up and down."""
    more = ["--trainer.max_epochs", "6", "--model.optim.lr", "3e-3", "--model.optim.schedule", "constant"]
    assert fit(*more, "--monitor", "val/mean_token_accuracy") == 0
    values = [float(row["val/mean_token_accuracy"]) for row in metrics() if row["val/mean_token_accuracy"]]
    assert max(values) > min(values)
    kept = checkpoint("runs/r/best.ckpt")
    assert values[kept["global_step"] // 4 - 1] == max(values)


def test_a_direction_that_nobody_knows_is_asked_for(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--monitor", "val/entropy") == 2
    assert "pass --monitor_mode min or max" in one_line(capsys)
    assert not Path("runs").exists()
    assert fit("--monitor", "val/entropy", "--monitor_mode", "max") == 0
    assert Path("runs/r/best.ckpt").exists()


@pytest.mark.parametrize("more", [[], ["--monitor", "val/loss"]])
def test_a_wrong_direction_is_refused(more: list[str], fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--monitor_mode", "max", *more) == 2
    assert one_line(capsys) == "error: --monitor_mode max: the best val/loss is the lowest; leave it out"
    assert fit("--monitor_mode", "min", *more) == 0


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_callbacks_have_the_direction_of_their_metric(name: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    args = [f"--trainer.callbacks+={name}", "--trainer.callbacks.monitor", "val/mean_token_accuracy"]
    assert fit(*args) == 2
    wanted = (
        f"{name}: mode is min, and the best val/mean_token_accuracy is the highest; pass --trainer.callbacks.mode max"
    )
    assert one_line(capsys) == f"error: --trainer.callbacks {wanted}"
    assert not Path("runs").exists()
    assert fit(*args, "--trainer.callbacks.mode", "max") == 0


@pytest.mark.parametrize("callback", [EarlyStopping, ModelCheckpoint])
def test_in_a_script_too(callback: Any, tiny_model: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(callback(monitor="val/loss", mode="max"), max_steps=1, default_root_dir=tmp_path)
    with pytest.raises(PostTrainError, match="the best val/loss is the lowest"):
        trainer.fit(build("sft", tiny_model), datamodule=METHODS["sft"].data(tmp_path))


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
@pytest.mark.parametrize(("metric", "meant"), [("val/los", "val/loss"), ("loss", "choose one such as")])
def test_a_misspelt_metric_is_told_after_a_step(
    name: str, metric: str, meant: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    assert fit(f"--trainer.callbacks+={name}", "--trainer.callbacks.monitor", metric) == 2
    said = one_line(capsys)
    assert f"{name}.monitor {metric}" in said
    assert meant in said
    assert torch.load("runs/r/last.ckpt", weights_only=True)["global_step"] == 1, "what was learnt is saved"


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("ModelCheckpoint", "step"),
        ("ModelCheckpoint", "epoch"),
        ("EarlyStopping", "kl/sampled"),
        ("EarlyStopping", "hacking/flags"),
    ],
)
def test_what_is_logged_elsewhere_or_later_is_not_misspelt(name: str, metric: str, fit: Fit) -> None:
    """Whether it is there when it is looked for, Lightning says."""
    more = ["--trainer.callbacks.strict", "false"] if name == "EarlyStopping" else ["--trainer.callbacks.mode", "max"]
    assert fit(f"--trainer.callbacks+={name}", "--trainer.callbacks.monitor", metric, *more) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--data.val_fraction", "0"],
            "no rows to validate on; name a file with --data.val_path, or hold rows out",
        ),
        (["--data.val_fraction", "1e-9"], "validate on (--data.val_fraction 1e-09 holds out none); name a file with"),
        (["--trainer.limit_val_batches", "0"], "--trainer.limit_val_batches 0 leaves validation out; drop one"),
    ],
)
@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_a_metric_of_a_validation_needs_one(
    name: str, options: list[str], said: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(f"--trainer.callbacks+={name}", "--trainer.callbacks.monitor", "val/loss", *options) == 2
    told = one_line(capsys)
    assert told.startswith(f"error: --trainer.callbacks {name}: it monitors val/loss, and ")
    assert said in told
    assert not Path("runs").exists(), "nothing was trained"


def test_metrics_of_training_need_no_validation(fit: Fit) -> None:
    args = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "train/loss"]
    assert fit(*args, "--data.val_fraction", "0") == 0
