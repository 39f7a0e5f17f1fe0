"""Every option of the Trainer does what it says, and the gradient stays that of the whole step; or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.cli import one_line
from helpers.trainer import checkpoint, metrics, same, weights
from torch import Tensor

from lit_posttrain.core.supported_options import OPTIONS
from lit_posttrain.types import TreeBatch

Fit = Callable[..., int]

# values that leave the training as it is, to the last bit
NEUTRAL = {
    "benchmark": ["true"],
    "check_val_every_n_epoch": ["2", "null"],
    "detect_anomaly": ["true"],
    "deterministic": ["true", "warn"],
    "devices": ["1", "auto"],
    "enable_autolog_hparams": ["false"],
    "enable_model_summary": ["true"],
    "enable_progress_bar": ["false"],
    "gradient_clip_algorithm": ["norm"],
    "inference_mode": ["false"],
    "limit_predict_batches": ["1"],
    "limit_test_batches": ["1"],
    "limit_val_batches": ["0"],
    "log_every_n_steps": ["3"],
    "max_time": ["00:01:00:00"],
    "min_epochs": ["1"],
    "min_steps": ["3"],
    "num_nodes": ["1"],
    "num_sanity_val_steps": ["2"],
    "use_distributed_sampler": ["false"],
    "val_check_interval": ["2", "00:01:00:00"],
}
# what a test below is about
CHANGING = {
    "accumulate_grad_batches",
    "enable_checkpointing",
    "fast_dev_run",
    "gradient_clip_val",
    "limit_train_batches",
    "max_epochs",
    "max_steps",
    "overfit_batches",
}
TABLES = {"accelerator", "callbacks", "logger", "plugins", "precision", "profiler", "strategy"}  # test_names.py
REFUSED = {
    "barebones": "true",
    "default_root_dir": "elsewhere",
    "model_registry": "name",
    "reload_dataloaders_every_n_epochs": "1",
    "sync_batchnorm": "true",
}


def test_every_option_is_tried() -> None:
    works = {option for option, support in OPTIONS.items() if support.works}
    assert works == set(NEUTRAL) | CHANGING | TABLES
    assert set(OPTIONS) - works == set(REFUSED)


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, torch.Tensor]]:
    """The weights of the run without further options, once it was made."""
    return {}


@pytest.mark.parametrize(("option", "value"), [(option, v) for option, values in NEUTRAL.items() for v in values])
def test_options_that_change_nothing(
    option: str, value: str, fit: Fit, plain: dict[str, dict[str, torch.Tensor]]
) -> None:
    if not plain:
        assert fit("--name", "plain") == 0
        plain.update(weights=weights("runs/plain/last.ckpt"))
    assert fit(f"--trainer.{option}", value) == 0
    assert same(weights(), plain["weights"])


@pytest.mark.parametrize("option", REFUSED)
def test_options_that_are_refused(option: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(f"--trainer.{option}", REFUSED[option]) == 2
    assert one_line(capsys) == f"error: --trainer.{option} {REFUSED[option]}: {OPTIONS[option].says}"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("accumulate_grad_batches", "0", "at least 1"),
        ("accumulate_grad_batches", "-1", "at least 1"),
        ("accumulate_grad_batches", "{0: 2}", "expected a whole number"),
        ("check_val_every_n_epoch", "0", "at least 1"),
        ("devices", "-1", "should be an int > 0"),
        ("gradient_clip_val", "-1", "at least 0"),
        ("limit_train_batches", "0", "nothing would be trained"),
        ("limit_train_batches", "-1", "invalid value"),
        ("limit_train_batches", "0.01", "increase the `limit_train_batches`"),
        ("log_every_n_steps", "0", "at least 1"),
        ("log_every_n_steps", "-1", "at least 1"),
        ("max_epochs", "0", "nothing would be trained"),
        ("max_epochs", "-1", "needs an end"),
        ("max_steps", "0", "nothing would be trained"),
        ("max_time", "1 hour", "DD:HH:MM:SS"),
        ("min_epochs", "2", "--trainer.max_epochs 1"),
        ("min_steps", "-1", "at least 0"),
        ("num_nodes", "0", "positive integer"),
        ("num_nodes", "2", "which node this is"),
        ("num_sanity_val_steps", "-2", "at least -1"),
        ("reload_dataloaders_every_n_epochs", "-1", "leave it out"),
        ("val_check_interval", "0", "to leave validation out"),
        ("val_check_interval", "100", "less than or equal to the number of the training batches (4)"),
        ("val_check_interval", "1.5", "[0.0, 1.0]"),
    ],
)
def test_values_that_cannot_be(
    option: str, value: str, said: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(f"--trainer.{option}", value) == 2
    assert said in one_line(capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize("parts", ["2", "4"])
def test_accumulation_leaves_the_gradient(parts: str, fit: Fit) -> None:
    sgd = ["--model.optim.optimizer", "torch.optim.SGD", "--model.optim.lr", "0.5"]
    assert fit(*sgd, "--name", "whole") == 0
    assert fit(*sgd, "--trainer.accumulate_grad_batches", parts) == 0
    whole, cut = weights("runs/whole/last.ckpt"), weights()
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-5


@pytest.mark.parametrize("interval", ["00:00:00:00", "2", "6"])
def test_validation_by_time_or_over_epochs(interval: str, fit: Fit) -> None:
    more = ["--trainer.check_val_every_n_epoch", "null", "--trainer.max_epochs", "2"]
    assert fit("--trainer.val_check_interval", interval, *more) == 0
    found = [int(row["step"]) + 1 for row in metrics() if row["val/loss"]]
    assert found == {"00:00:00:00": [1, 2, 3, 4, 5, 6, 7, 8], "2": [2, 4, 6, 8], "6": [6]}[interval]


def test_enable_checkpointing(fit: Fit) -> None:
    assert fit("--trainer.enable_checkpointing", "false") == 0
    assert not list(Path("runs/r").glob("*.ckpt"))


@pytest.mark.parametrize("steps", ["true", "2"])
def test_fast_dev_run(steps: str, fit: Fit) -> None:
    assert fit("--trainer.fast_dev_run", steps) == 0
    assert not Path("runs").exists()


@pytest.mark.parametrize("option", ["gradient_clip_val", "gradient_clip_algorithm"])
def test_clipping(option: str, fit: Fit) -> None:
    """One step of SGD with lr 1 moves the weights by the clipped gradient."""
    sgd = ["--model.optim.optimizer", "torch.optim.SGD", "--model.optim.lr", "1", "--trainer.max_steps", "1"]
    sgd += ["--model.optim.schedule", "constant", "--model.optim.warmup_ratio", "0"]
    clips = {"gradient_clip_val": ["norm"], "gradient_clip_algorithm": ["value"]}[option]
    moved = {}
    for name, extra in {"none": ["null"], "clipped": ["1e-3", "--trainer.gradient_clip_algorithm", *clips]}.items():
        assert fit(*sgd, "--name", name, "--trainer.gradient_clip_val", *extra) == 0
        moved[name] = weights(f"runs/{name}/last.ckpt")
    assert fit(*sgd, "--model.optim.lr", "0", "--name", "start") == 0
    start = weights("runs/start/last.ckpt")
    free = {key: start[key] - moved["none"][key] for key in start}
    if option == "gradient_clip_val":
        own = {start[key].data_ptr(): g.norm() for key, g in free.items()}  # tied weights are there twice
        norm = torch.stack(list(own.values())).norm()
        wanted = {key: g * 1e-3 / norm for key, g in free.items()}
    else:
        wanted = {key: g.clamp(-1e-3, 1e-3) for key, g in free.items()}
    for key in start:
        torch.testing.assert_close(start[key] - moved["clipped"][key], wanted[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("limit", "steps"), [("3", 3), ("0.5", 2)])
def test_limit_train_batches(limit: str, steps: int, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.limit_train_batches", limit, "--trainer.max_epochs", "2") == 0
    assert checkpoint()["global_step"] == 2 * steps
    capsys.readouterr()
    half = ["--trainer.limit_train_batches", "3", "--trainer.accumulate_grad_batches", "2"]
    assert fit(*half, "--name", "half") == 2
    assert "not a multiple" in one_line(capsys)


def test_max_epochs_and_max_steps(fit: Fit) -> None:
    assert fit("--trainer.max_epochs", "3", "--name", "epochs") == 0
    assert checkpoint("runs/epochs/last.ckpt")["global_step"] == 12
    assert fit("--trainer.max_epochs", "-1", "--trainer.max_steps", "6", "--name", "steps") == 0
    assert checkpoint("runs/steps/last.ckpt")["global_step"] == 6


def test_overfit_batches_shows_the_same_rows_in_every_epoch(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_posttrain.methods.sft import SFT

    shown: list[list[int]] = []
    step = SFT.training_step

    def showing(self: SFT, batch: TreeBatch, batch_idx: int) -> Tensor:
        shown.append(sorted(batch.example_ids))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SFT, "training_step", showing)
    assert fit("--trainer.overfit_batches", "2", "--trainer.max_epochs", "3") == 0
    assert len(shown) == 6
    assert shown[0:2] == shown[2:4] == shown[4:6]
    assert shown[0] != shown[1]


def test_a_callback_that_changes_the_accumulation_is_refused(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sneaky.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Sneaky(Callback):\n"
        "    def on_train_epoch_start(self, trainer, pl_module):\n"
        "        trainer.accumulate_grad_batches = 2\n"
    )
    assert fit("--trainer.callbacks+=sneaky.Sneaky") == 2
    assert "a callback has set accumulate_grad_batches to 2, and every step was planned of 1" in one_line(capsys)


def test_what_was_saved_within_a_step_is_gone_on_with_from_its_beginning(fit: Fit) -> None:
    Path("within.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Within(Callback):\n"
        "    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):\n"
        "        trainer.save_checkpoint(f'batch{batch_idx}.ckpt')\n"
    )
    two = ["--trainer.accumulate_grad_batches", "2"]
    assert fit("--trainer.callbacks+=within.Within", *two) == 0
    for batch in (2, 3):
        assert fit(*two, "--name", f"from{batch}", "--ckpt_path", f"batch{batch}.ckpt") == 0
        assert same(weights(f"runs/from{batch}/last.ckpt"), weights())
