"""Loggers, profilers, strategies, precisions, accelerators and plugins by their names on the command line."""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.cli import one_line
from helpers.trainer import checkpoint, metrics, same, weights

from lit_posttrain.core import supported

Fit = Callable[..., int]
Says = Callable[[], str]
ONE_STEP = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"]
TABLES = {
    "logger": supported.LOGGERS,
    "profiler": supported.PROFILERS | {n: supported.PROFILERS[c] for n, c in supported.PROFILER_NAMES.items()},
    "strategy": supported.STRATEGIES,
    "precision": supported.PRECISIONS,
    "accelerator": supported.ACCELERATORS,
    "plugins": supported.PLUGINS,
}


def of(works: bool, *options: str) -> list[tuple[str, str]]:
    return [(o, name) for o in options for name, support in TABLES[o].items() if support.works == works]


@pytest.mark.parametrize(("option", "name"), of(False, *TABLES))
def test_what_does_not_work_is_refused(option: str, name: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(f"--trainer.{option}", name) == 2
    assert one_line(capsys) == f"error: --trainer.{option} {name}: {TABLES[option][name].says}"
    assert not Path("runs").exists()


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_processes_that_are_not_started_as_commands(start: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.strategy", "DDPStrategy", "--trainer.strategy.start_method", start) == 2
    assert f"start_method {start}" in one_line(capsys)


@pytest.mark.parametrize(("option", "name"), [("strategy", "dp"), ("accelerator", "hpu"), ("profiler", "quick")])
def test_names_that_lightning_does_not_know(
    option: str, name: str, fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(f"--trainer.{option}", name) == 2
    assert one_line(capsys).startswith("error: --trainer")


# Loggers ----------------------------------------------------------------------

PACKAGES = {"CometLogger": "comet_ml", "MLFlowLogger": "mlflow", "TensorBoardLogger": "tensorboard"}


@pytest.mark.parametrize("name", [name for _, name in of(True, "logger")])
def test_loggers(name: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--trainer.logger.save_dir", "logs"] if name in ("CSVLogger", "TensorBoardLogger") else []
    package = PACKAGES.get(name)
    lacking = package is not None and find_spec(package) is None
    if name == "CometLogger" and not lacking:
        pytest.skip("logs to a service")
    assert fit(f"--trainer.logger+={name}", *needed, *ONE_STEP) == (2 if lacking else 0)
    if lacking:
        said = one_line(capsys)
        assert said.startswith(f"error: {name}: ")
        assert str(package).partition("_")[0] in said
        assert not Path("runs").exists()
        return
    assert any(row["train/loss"] for row in metrics())  # those of the run itself are kept beside
    if name == "CSVLogger":
        (file,) = Path("logs").rglob("metrics.csv")
        with file.open() as rows:
            assert any(row["train/loss"] for row in csv.DictReader(rows))
    elif needed:
        assert list(Path("logs").rglob("events.*"))


# Profilers ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for _, name in of(True, "profiler")])
def test_profilers_print_what_they_measured(name: str, fit: Fit, lightning_says: Says) -> None:
    assert fit("--trainer.profiler", name, *ONE_STEP) == 0
    shown = lightning_says()
    kind = supported.PROFILER_NAMES.get(name, name)
    told = {"SimpleProfiler": "run_training_batch", "AdvancedProfiler": "cumtime", "PyTorchProfiler": "Self CPU"}
    assert (told[kind] in shown) if kind in told else not shown
    assert (kind == "PyTorchProfiler") == any(Path("runs/r").glob("*.pt.trace.json"))


def test_a_profile_may_go_to_a_file(fit: Fit) -> None:
    args = ["--trainer.profiler", "SimpleProfiler", "--trainer.profiler.filename", "profile"]
    assert fit(*args, *ONE_STEP) == 0
    assert "run_training_batch" in Path("runs/r/fit-profile.txt").read_text()


# Strategies, precisions, accelerators ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for _, name in of(True, "strategy") if name != "FSDP2Strategy"])
def test_strategies_train_the_same_on_one_device(name: str, fit: Fit) -> None:
    """On two, tests/spine compares the gradients; what sharding leaves is tested with its checkpoints."""
    assert fit("--trainer.devices", "1", "--name", "plain", *ONE_STEP) == 0
    assert fit("--trainer.devices", "1", "--trainer.strategy", name, *ONE_STEP) == 0
    assert same(weights(), weights("runs/plain/last.ckpt"))


def test_a_strategy_is_named_by_its_class_as_a_path_too(fit: Fit) -> None:
    path = "lightning.pytorch.strategies.DDPStrategy"
    assert fit("--trainer.strategy", path, "--trainer.strategy.find_unused_parameters", "true", *ONE_STEP) == 0
    text = Path("runs/r/config.yaml").read_text()
    assert path in text
    assert "find_unused_parameters: true" in text


DTYPES = {"bf16-true": torch.bfloat16, "64": torch.float64, "64-true": torch.float64}


@pytest.mark.parametrize("name", [name for _, name in of(True, "precision")])
def test_precisions(name: str, fit: Fit) -> None:
    """The weights have their type, and the first gradient is that of float32 as far as the type goes."""
    sgd = [
        "--model.optim.optimizer",
        "torch.optim.SGD",
        "--model.optim.schedule",
        "constant",
        "--model.optim.warmup_ratio",
        "0",
    ]
    sgd += ["--model.optim.options", "{fused: false}"]
    moved = {}
    for run, precision, rate in (("start", name, "0"), ("whole", "32-true", "1"), ("r", name, "1")):
        how = ["--trainer.precision", precision, "--model.optim.lr", rate, "--trainer.gradient_clip_val", "null"]
        assert fit(*sgd, *how, *ONE_STEP, "--name", run) == 0
        moved[run] = weights(f"runs/{run}/last.ckpt")
    assert {tensor.dtype for tensor in moved["r"].values()} == {DTYPES.get(name, torch.float32)}
    whole = torch.cat([(moved["whole"][k] - moved["start"][k]).double().flatten() for k in moved["r"]])
    found = torch.cat([(moved["r"][k].double() - moved["start"][k].double()).flatten() for k in moved["r"]])
    assert float(torch.nn.functional.cosine_similarity(whole, found, dim=0)) > 0.99


def test_an_optimizer_that_changes_nothing_is_refused(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """torch's fused SGD on a CPU, of weights in bfloat16."""
    fused = ["--model.optim.optimizer", "torch.optim.SGD", "--model.optim.options", "{fused: true}"]
    assert fit(*fused, "--trainer.precision", "bf16-true") == 2
    assert "fused, it leaves torch.bfloat16 weights on a cpu as they are" in one_line(capsys)


@pytest.mark.parametrize("name", [name for _, name in of(True, "accelerator")])
def test_accelerators(name: str, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    there = {"cpu": True, "auto": True, "mps": torch.backends.mps.is_available()}.get(name, torch.cuda.is_available())
    assert fit("--trainer.accelerator", name, "--trainer.devices", "1", *ONE_STEP) == (0 if there else 2)
    if there:
        assert checkpoint()["global_step"] == 1
    else:
        assert one_line(capsys).startswith("error: --trainer: ")


# Plugins ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for _, name in of(True, "plugins")])
def test_cluster_environments(
    name: str, fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they need of a cluster is there in one process, or is said in a line."""
    for variable, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x"}.items():
        if name in ("KubeflowEnvironment", "TorchElasticEnvironment"):
            monkeypatch.setenv(variable, value)
            monkeypatch.setenv("MASTER_PORT", "1")
    status = fit("--trainer.plugins", name, "--trainer.devices", "1", *ONE_STEP)
    if status:
        assert one_line(capsys).startswith("error: ")
        assert name in ("LSFEnvironment", "MPIEnvironment")
    else:
        assert checkpoint()["global_step"] == 1
