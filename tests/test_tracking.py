"""metrics.csv over crashes and resumes; Weights & Biases without a network, a key, or the package."""

from __future__ import annotations

import csv
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from helpers.processes import ended_within, forked
from lightning.pytorch.utilities import rank_zero_only

from lit_posttrain.loggers import MetricsCSV, WandbOptions, keep_run_id, wandb_logger, weights_and_biases
from lit_posttrain.runs.commit import git_commit
from lit_posttrain.runs.forget import forget_run

KEY = "0123456789abcdef0123456789abcdef01234567"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_row_per_step_and_columns_as_they_come(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path / "new")
    log.log_metrics({"train/loss": 1.5, "epoch": 0}, 0)
    log.log_metrics({"train/loss": 1.25, "epoch": 0}, 1)
    log.log_metrics({"val/loss": 1.3, "epoch": 0}, 1)
    log.log_metrics({"train/loss": 1e-7}, 2)
    log.log_metrics({"note": 3.0})
    assert table(tmp_path / "new") == [
        {"step": "0", "train/loss": "1.5", "epoch": "0", "val/loss": "", "note": ""},
        {"step": "1", "train/loss": "1.25", "epoch": "0", "val/loss": "1.3", "note": ""},
        {"step": "2", "train/loss": "1e-07", "epoch": "", "val/loss": "", "note": "3.0"},
    ]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["metrics.csv"]


def test_complete_after_every_call(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path)
    for step in range(20):
        log.log_metrics({"a": step + 0.123456}, step)
        log.log_metrics({"a": step}, step)  # a shorter line than before
        log.log_metrics({"b": step} if step % 3 else {"a": -step}, step)
        rows = table(tmp_path)
        assert [r["step"] for r in rows] == [str(s) for s in range(step + 1)]
        assert rows[-1]["a"] == str(step if step % 3 else -step)
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == step + 2


def test_resumed_run_takes_later_rows_away(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path)
    for step in range(8):
        first.log_metrics({"loss": step, "val": 0.5}, step)
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("8,1.")  # the crash
    resumed = MetricsCSV(tmp_path)
    resumed.log_metrics({"loss": -5.0}, 5)
    assert [(r["step"], r["loss"], r["val"]) for r in table(tmp_path)][4:] == [("4", "4", "0.5"), ("5", "-5.0", "")]
    resumed.log_metrics({"loss": -6.0, "fresh": 1}, 6)
    resumed.log_metrics({"loss": -4.0}, 4)
    assert [(r["step"], r["loss"]) for r in table(tmp_path)][3:] == [("3", "3"), ("4", "-4.0")]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    MetricsCSV(tmp_path).log_metrics({"loss": 1.0}, 0)
    assert not list(tmp_path.iterdir())


def test_forget_run(tmp_path: Path) -> None:
    """What a run and `predict` have written goes, by its exact name; notes and folders of people stay."""
    left = ["samples.jsonl", "completions.jsonl", "rewards.jsonl", "validate_rewards.png", "hpc_ckpt_1.ckpt"]
    left += ["predictions.jsonl", "predictions-0.jsonl", "predictions-12.part"]
    for name in ("last.ckpt", "best.ckpt", "wandb_id.txt", "run_id.txt", "audit.json", *left):
        (tmp_path / name).touch()
    kept = ["config.yaml", "hpc_ckpt_notes.md", "predictions-notes.md", "predictions-mine.jsonl", "rewards.py"]
    for name in [*kept, "validate_rewards.txt"]:
        (tmp_path / name).touch()
    folders = ["hpc_ckpt_old.ckpt", "predictions_old", "predictions-3.jsonl", "rewards.old", "rewards.png"]
    for name in folders:
        (tmp_path / name).mkdir()
    forget_run(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*kept, *folders, "validate_rewards.txt"}


def test_what_cannot_be_forgotten_leaves_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("last.ckpt", "best.ckpt", "audit.json"):
        (tmp_path / name).touch()

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "audit.json":
            raise PermissionError
        os.unlink(path)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(PermissionError):
        forget_run(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    for args in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *args], check=True)
    commit = git_commit()
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit() == commit + "+changes"


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nobody has logged in, and on which W&B's server cannot be reached."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    import wandb

    wandb.teardown()


def everything_in(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.usefixtures("no_account")
def test_offline_run_goes_on_under_its_id_and_tells_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb

    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["lit-posttrain", "fit", "--data.hf_token", "an-argument-of-mine"])
    for key in (None, KEY):
        if key:
            monkeypatch.setenv("WANDB_API_KEY", key)
        options = WandbOptions("my-project", "offline" if key else "auto")
        logger = wandb_logger(run, options, "a-name", {"lr": 0.125, "api_key": "from-the-config"})
        assert logger is not None
        assert not (run / "wandb_id.txt").exists() or key, "the run has not begun yet"
        keep_run_id(run, str(logger.version))
        logger.log_metrics({"train/loss": 0.5}, 3)
        logger.log_table("samples", columns=["prompt"], data=[["a-prompt-to-see"]], step=3)
        wandb.finish()
        time.sleep(1)  # wandb names the folder of a run by the second
    run_id = (run / "wandb_id.txt").read_text().strip()
    runs = [p for p in (run / "wandb").iterdir() if p.name.startswith("offline-run-")]
    assert len(runs) == 2
    assert all(run_id in p.name for p in runs)
    content = everything_in(run)
    for shown in (b"my-project", b"a-name", b"train/loss", b"a-prompt-to-see", b"git_commit", b"***"):
        assert shown in content
    for hidden in (KEY.encode(), b"from-the-config", b"an-argument-of-mine"):
        assert hidden not in content
    assert capfd.readouterr() == ("", "")


def lose_the_backend(folder: Path) -> None:
    """A run that goes on when the process beside it is killed; for a process of its own."""
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    logger = wandb_logger(folder / "run", WandbOptions(mode="offline"), "x", {})
    assert logger is not None
    logger.log_metrics({"a": 1.0}, 1)
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes()
            parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"wandb-core" in command and int(parent) == os.getpid():
            os.kill(int(place.name), signal.SIGKILL)
            print("killed")
    time.sleep(1)
    for step in range(2, 20):
        logger.log_metrics({"a": 1.0}, step)
        logger.log_table("t", columns=["a"], data=[["b"]], step=step)
    logger.finalize("success")
    print("done")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process in /proc")
def test_a_run_goes_on_without_its_backend(tmp_path: Path) -> None:
    said, errors = tmp_path / "said", tmp_path / "errors"
    status = ended_within(forked(lose_the_backend, tmp_path, output=said, errors=errors), 120)
    assert status == 0, errors.read_text()
    assert said.read_text().split() == ["killed", "done"]
    assert errors.read_text().count("Weights & Biases is gone (") == 1, errors.read_text()


@pytest.mark.usefixtures("no_account")
def test_unreachable_server_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(weights_and_biases, "_INIT_TIMEOUT_S", 2.0)
    with caplog.at_level(logging.WARNING, "lit_posttrain"):
        logger = wandb_logger(tmp_path, WandbOptions(), "x", {})
    assert logger is not None
    assert logger.experiment.offline
    [message] = [r.message for r in caplog.records if r.name.startswith("lit_posttrain")]
    assert message.startswith("Weights & Biases cannot be reached (")
    assert KEY not in caplog.text


@pytest.mark.usefixtures("no_account")
def test_online_without_a_key_asks_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = wandb_logger(tmp_path, WandbOptions(mode="online"), "x", {})
    assert logger is not None
    assert logger.experiment.offline
    assert "no key for Weights & Biases: offline" in caplog.text


def test_without_wandb_or_room_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert wandb_logger(tmp_path / "file/run", WandbOptions(mode="offline"), "x", {}) is None
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert wandb_logger(tmp_path, WandbOptions(mode="offline"), "x", {}) is None
    assert wandb_logger(tmp_path, WandbOptions(mode="disabled"), "x", {}) is None
    assert [r.message.partition(" (")[0] for r in caplog.records] == ["no Weights & Biases"] * 2
    assert "wandb" not in os.listdir(tmp_path)


def import_anew() -> int:
    """1 if the package or Lightning imports wandb with itself; for a process of its own."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("lightning", "lit_posttrain", "wandb"):
            del sys.modules[name]
    import_module("lit_posttrain.loggers")
    import_module("lit_posttrain.callbacks")
    return int("wandb" in sys.modules)


def test_importing_does_not_import_wandb(tmp_path: Path) -> None:
    assert ended_within(forked(import_anew, output=tmp_path / "said"), 120) == 0


def log_part(folder: Path, first: int, last: int) -> None:
    """The steps of a part of a run; for a process of its own."""
    import wandb

    logger = wandb_logger(folder, WandbOptions(mode="offline"), "x", {})
    assert logger is not None
    keep_run_id(folder, str(logger.version))
    for step in range(first, last):
        logger.log_metrics({"train/loss": step / 10}, step)
        logger.log_metrics({"val/loss": step / 5}, step)
        print("at", logger.experiment.step, logger.version)
    wandb.teardown()


def test_offline_parts_of_a_run_count_on(tmp_path: Path) -> None:
    """They are uploaded as one history, by W&B's own count of steps."""
    said = []
    for first, last in ((0, 4), (3, 6)):
        output = tmp_path / f"from {first}.txt"
        assert ended_within(forked(log_part, tmp_path / "run", first, last, output=output), 120) == 0
        said.append([line.split()[1:] for line in output.read_text().splitlines() if line.startswith("at ")])
    assert [[int(step) for step, _ in part] for part in said] == [[0, 1, 2, 3], [3, 4, 5]]
    assert len({identity for part in said for _, identity in part}) == 1
