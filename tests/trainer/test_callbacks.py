"""Every callback that Lightning ships, by its name on the command line: what it does, or the line that refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import told
from helpers.cli import one_line
from helpers.trainer import checkpoint, metrics, same, weights

from lit_posttrain.cli.main import main
from lit_posttrain.core.supported import CALLBACKS

Fit = Callable[..., int]
WORKS = sorted(name for name, support in CALLBACKS.items() if support.works)
REFUSED = sorted(name for name, support in CALLBACKS.items() if not support.works)
NEEDED = {
    "GradientAccumulationScheduler": ["scheduling={0: 2}"],
    "ModelPruning": ["pruning_fn=l1_unstructured"],
    "OnExceptionCheckpoint": ["dirpath=."],
    "StochasticWeightAveraging": ["swa_lrs=0.01"],
}


def named(name: str, *arguments: str) -> list[str]:
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{argument}" for argument in arguments)]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("complete", [True, False])
def test_a_callback_that_does_not_work_is_refused(
    name: str, complete: bool, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it lacks an argument, which people would otherwise add for nothing."""
    if not complete and name not in NEEDED:
        pytest.skip("needs no argument")
    assert fit(*named(name, *(NEEDED.get(name, []) if complete else []))) == 2
    assert one_line(capsys) == f"error: --trainer.callbacks {name}: {CALLBACKS[name].says}"
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", WORKS)
def test_every_callback_that_works_is_tried(name: str) -> None:
    assert f"test_{name}" in globals()


def test_DeviceStatsMonitor(fit: Fit) -> None:
    assert fit(*named("DeviceStatsMonitor")) == 0
    columns = [name for name in metrics()[0] if name.startswith("DeviceStatsMonitor.on_train_batch_end/cpu")]
    assert columns
    assert all(row[columns[0]] for row in metrics())


def averaged(fit: Fit, name: str, *arguments: str) -> None:
    """last.ckpt has the average of the weights after every step, which is computed here from runs that stop at each."""
    adam = ["--model.optim.schedule", "constant", "--model.optim.warmup_ratio", "0", "--trainer.limit_val_batches", "0"]
    path = []
    for steps in (1, 2, 3):
        assert fit(*adam, "--trainer.max_steps", str(steps), "--name", f"s{steps}") == 0
        path.append(weights(f"runs/s{steps}/last.ckpt"))
    assert fit(*adam, "--trainer.max_steps", "3", *named(name, *arguments)) == 0
    found = weights()
    for key in found:
        values = [state[key].double() for state in path]
        mean = sum(values[1:], values[0]) / 3
        smooth = 0.5 * (0.5 * values[0] + 0.5 * values[1]) + 0.5 * values[2]
        wanted = mean if name == "WeightAveraging" else smooth
        torch.testing.assert_close(found[key].double(), wanted, rtol=0, atol=1e-7)
    assert any((found[key] != path[2][key]).any() for key in found)
    assert same(checkpoint()["current_model_state"], path[2])


def test_EMAWeightAveraging(fit: Fit) -> None:
    averaged(fit, "EMAWeightAveraging", "decay=0.5")


def test_WeightAveraging(fit: Fit) -> None:
    averaged(fit, "WeightAveraging")


def test_an_averaged_run_resumes_exactly(fit: Fit) -> None:
    """Stopped after a step and gone on with: the same weights and the same average."""
    ema = [
        *named("EMAWeightAveraging", "decay=0.5"),
        "--model.optim.schedule",
        "constant",
        "--model.optim.warmup_ratio",
        "0",
    ]
    assert fit(*ema, "--trainer.max_steps", "7", "--trainer.max_epochs", "2", "--name", "whole") == 0
    assert fit(*ema, "--trainer.max_steps", "3", "--trainer.max_epochs", "2", "--name", "part") == 0
    assert main(["fit", "--resume", "part", "--trainer.max_steps", "7"]) == 0
    whole, part = checkpoint("runs/whole/last.ckpt"), checkpoint("runs/part/last.ckpt")
    assert same(whole["state_dict"], part["state_dict"])
    assert same(whole["current_model_state"], part["current_model_state"])


def test_an_average_is_not_taken_of_adapters(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*named("EMAWeightAveraging"), "--model.policy.lora.r", "4") == 2
    assert "adapters" in one_line(capsys)
    assert not Path("runs").exists()


def test_an_average_of_the_ends_of_epochs_is_refused(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """last.ckpt, the same at the last step of an epoch and behind it, would lack what comes in between."""
    assert fit(*named("EMAWeightAveraging", "update_starting_at_epoch=0")) == 2
    assert "average over steps instead" in one_line(capsys)
    assert fit(*named("EMAWeightAveraging", "update_starting_at_step=2")) == 0


def test_EarlyStopping(fit: Fit) -> None:
    args = named("EarlyStopping", "monitor=val/loss", "patience=1", "min_delta=100.0")
    assert fit(*args, "--trainer.max_epochs", "6") == 0
    assert checkpoint()["global_step"] == 2 * 4  # the second validation is no better by 100


def test_LambdaCallback(fit: Fit) -> None:
    told.STEPS.clear()
    assert fit(*named("LambdaCallback", "on_train_batch_end=helpers.told.note_step")) == 0
    assert told.STEPS == [1, 2, 3, 4]


def test_LearningRateMonitor(fit: Fit) -> None:
    assert fit(*named("LearningRateMonitor")) == 0
    assert {"lr-AdamW/pg1", "lr-AdamW/pg2"} <= set(metrics()[0])


def test_ModelCheckpoint(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """Keeps further ones in the run's folder, written whole or not at all, from each of which the run goes on as if it
    had not been stopped. The end says where."""
    keep = named("ModelCheckpoint", "every_n_train_steps=3", "save_top_k=-1")
    two = ["--trainer.max_epochs", "2", "--trainer.accumulate_grad_batches", "2"]
    assert fit(*keep, *two) == 0
    folder = Path("runs/r/checkpoints")
    assert f"kept       runs/r/best.ckpt, runs/r/last.ckpt, {folder}/*.ckpt\n" in capsys.readouterr().out
    assert sorted(f.name for f in folder.iterdir()) == ["epoch=0-step=3.ckpt", "epoch=1-step=6.ckpt"]
    for kept in folder.iterdir():
        assert fit(*two, "--name", kept.stem.replace("=", ""), "--ckpt_path", str(kept)) == 0
        assert same(weights(f"runs/{kept.stem.replace('=', '')}/last.ckpt"), weights())


def test_weights_alone_are_not_gone_on_with(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*named("ModelCheckpoint", "save_weights_only=true")) == 0
    assert fit("--name", "on", "--ckpt_path", "runs/r/checkpoints/epoch=0-step=4.ckpt") == 2
    assert "checkpoint contains only the model" in one_line(capsys)


def test_ModelSummary(fit: Fit, lightning_says: Callable[[], str]) -> None:
    assert fit(*named("ModelSummary"), "--trainer.max_steps", "1") == 0
    assert "106 K" in lightning_says()


def test_RichModelSummary(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*named("RichModelSummary"), "--trainer.max_steps", "1") == 0
    assert "Trainable params" in capsys.readouterr().out


def test_RichProgressBar(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*named("RichProgressBar")) == 0
    shown = capsys.readouterr().out
    assert "4/4" in shown
    assert "step/s" not in shown  # ours


def test_SpikeDetection(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*named("SpikeDetection", "rtol=0.00001", "mode=max")) == 2
    assert "spike" in one_line(capsys)
    assert json.loads(Path("runs/r/skip_batches.json").read_text())


def test_TQDMProgressBar(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*named("TQDMProgressBar")) == 0
    shown = "".join(capsys.readouterr())
    assert "4/4" in shown
    assert "step/s" not in shown


def test_Timer(fit: Fit) -> None:
    assert fit(*named("Timer", "duration=00:00:00:01"), "--trainer.max_epochs", "100000") == 0
    state = checkpoint()
    assert 0 < state["global_step"] < 4 * 100000
    assert "interval: step" in Path("runs/r/config.yaml").read_text()


def test_a_class_of_ones_own_is_refused_for_what_it_is(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "from lightning.pytorch.callbacks import GradientAccumulationScheduler\n"
        "class Mine(GradientAccumulationScheduler):\n"
        "    def __init__(self):\n"
        "        super().__init__({0: 2})\n"
    )
    assert fit(*named("mine.Mine")) == 2
    assert "Mine (a GradientAccumulationScheduler): " in one_line(capsys)


def test_a_constructor_that_fails_is_one_line(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Broken(Callback):\n"
        "    def __init__(self, level: int = 1):\n"
        "        raise ValueError('level must be 3')\n"
    )
    assert fit(*named("broken.Broken", "level=2")) == 2
    assert one_line(capsys) == "error: Broken: level must be 3 (--traceback shows where in the code)"
