"""The folder of a run: who may use it, what it is called, and how it is found again."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from helpers.cli import fit, one_line
from helpers.processes import environment

from lit_posttrain import SFT, ModelSpec
from lit_posttrain.cli.main import main
from lit_posttrain.cli.run_config import with_absolute_paths
from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.folder import RunLock, fresh_name

HOLD = """
import os, sys, time
from pathlib import Path
from lit_posttrain.runs.folder import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
if os.fork() == 0:
    time.sleep(60)  # what a run has forked does not hold its lock
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_train_in_one_folder(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1") == 0
    assert not Path("runs/one/.lock").exists()
    before = {file: file.read_bytes() for file in Path("runs/one").iterdir() if file.is_file()}
    capsys.readouterr()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, "runs/one"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for again in (["--overwrite", "true"], ["--name", "two"]):
            expected = 2 if "--overwrite" in again else 0
            assert fit(chats, tiny_model, "--name", "one", *again, "--trainer.max_steps", "1") == expected
        assert main(["fit", "--resume", "one", "--trainer.max_steps", "2"]) == 2
        said = capsys.readouterr().err
        assert said.count(f"runs/one is being trained in by process {holder.pid} on ") == 2
        holder.kill()
        holder.wait()
        changed = {file: file.read_bytes() for file in before}
        assert changed == before
        assert main(["fit", "--resume", "one", "--trainer.max_steps", "2"]) == 0, "a crash leaves no lock"
    finally:
        os.killpg(holder.pid, 9)


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    first.take()
    first.release()
    second.take()
    assert second.file.exists()
    second.release()
    assert list((tmp_path / "run").iterdir()) == []


def test_runs_without_a_name_never_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_POSTTRAIN_RUN", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(lambda _: fresh_name("sft", tmp_path, claim=True), range(16)))
    assert len(set(names)) == 16
    monkeypatch.setenv("SLURM_NTASKS", "2")
    steps = []
    for step in ("0", "0", "1"):
        monkeypatch.setenv("SLURM_STEP_ID", step)
        steps.append(fresh_name("sft", tmp_path, claim=True))
    assert steps == ["sft-7.0", "sft-7.0", "sft-7.1"]


def test_one_command_begins_and_goes_on(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--resume", "auto", "--data.batch_size", "4", "--trainer.callbacks+=SampleLogger"]
    command += ["--trainer.callbacks.prompts", "[hello]", "--trainer.callbacks.max_new_tokens", "2"]
    assert fit(chats, tiny_model, *command) == 2
    assert "--resume auto: pass --name NAME too" in one_line(capsys)
    original = SFT.training_step

    def fails_once(module: SFT, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == 2 and not Path("failed").exists():
            Path("failed").touch()
            raise PostTrainError("preempted")
        return original(module, batch, batch_idx)

    monkeypatch.setattr(SFT, "training_step", fails_once)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert fit(chats, tiny_model, *command) == 2
    assert torch.load("runs/slurm-12/last.ckpt", weights_only=True)["global_step"] == 2
    assert "go on with: lit-posttrain fit --resume slurm-12" in capsys.readouterr().out
    assert fit(chats, tiny_model, *command) == 0
    assert ", from step 2 on" in capsys.readouterr().out
    assert torch.load("runs/slurm-12/last.ckpt", weights_only=True)["global_step"] == 4
    callbacks = yaml.safe_load(Path("runs/slurm-12/config.yaml").read_text())["trainer"]["callbacks"]
    assert len(callbacks) == 1, "as when it began"
    assert fit(chats, tiny_model, *command, "--name", "other") == 0, "a name of its own begins another"


def test_paths_in_a_saved_config_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rm-hf").mkdir()
    given = {"critic": {"start": "./rm-hf"}, "cache_dir": "~/cache", "dirpath": "kept", "start": "none"}
    given |= {"save_dir": "s3://bucket/x"}
    found = with_absolute_paths(given)
    assert found == {
        "critic": {"start": str(tmp_path / "rm-hf")},
        "cache_dir": "~/cache",
        "dirpath": str(tmp_path / "kept"),
        "start": "none",
        "save_dir": "s3://bucket/x",
    }


@pytest.mark.parametrize("lies", ["file", "folder"])
def test_the_name_of_a_built_in_template_is_no_path(
    lies: str, chats: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("chatml").mkdir() if lies == "folder" else Path("chatml").write_text("another template")
    assert (
        fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1", "--model.policy.chat_template", "chatml")
        == 0
    )
    config = yaml.safe_load(Path("runs/one/config.yaml").read_text())
    assert config["model"]["init_args"]["policy"]["chat_template"] == "chatml"
    assert torch.load("runs/one/last.ckpt", weights_only=True)["lit_posttrain"]["policy"]["chat_template"] == "chatml"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["export", "--ckpt", str(tmp_path / "runs/one"), "--out", "out"]) == 0
    assert main(["fit", "--resume", str(tmp_path / "runs/one"), "--trainer.max_steps", "2"]) == 0


@pytest.mark.parametrize(
    ("option", "value", "made", "leads"),
    [
        ("tokenizer", "gpt2", "file", False),
        ("tokenizer", "gpt2", "folder", True),
        ("tokenizer", "mine.gguf", "file", True),
        ("tokenizer", "gpt2", "", False),
        ("chat_template", "mine.jinja", "file", True),
        ("chat_template", "chatml", "file", False),
        ("chat_template", "chatml", "folder", False),
        ("chat_template", "{{ messages }}" * 400, "", False),
        ("path", "model", "folder", True),
        ("path", "rows.jsonl", "file", True),
        ("path", "package:llm/x", "", False),
        ("template", "{prompt}", "file", False),
        ("template", "~/{prompt}", "", False),
    ],
)
def test_what_is_made_absolute_is_what_the_option_takes(
    option: str, value: str, made: str, leads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if made:
        Path(value).mkdir() if made == "folder" else Path(value).touch()
    expected = str(tmp_path / value) if leads else value
    assert with_absolute_paths({"policy": {option: value}}) == {"policy": {option: expected}}
    if option != "template":
        options: dict[str, Any] = {"path": "org/model", option: value}
        spec = ModelSpec(**options).found_from_anywhere()
        assert getattr(spec, option) == expected


def test_a_run_goes_on_from_another_folder(
    chats: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("column").touch()  # a file that is called as a column is
    (tmp_path / "model").symlink_to(tiny_model)
    assert fit(Path(chats.name), Path("model"), "--name", "one", "--trainer.max_epochs", "1") == 0
    saved = yaml.safe_load(Path("runs/one/config.yaml").read_text())
    assert saved["data"]["init_args"]["path"] == str(chats)
    assert saved["model"]["init_args"]["policy"]["path"] == str(tmp_path / "model")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert main(["fit", "--resume", "one"]) == 2
    assert str(elsewhere / "runs") in one_line(capsys)
    assert main(["fit", "--resume", str(tmp_path / "runs/one"), "--trainer.max_epochs", "2"]) == 0
    assert fit(Path("nothing.jsonl"), tiny_model) == 2
    assert f"looked in {elsewhere}" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runs", "chats.jsonl", "--name", "one"], "chats.jsonl/one: no run can be kept there (Not a directory)"),
        (["--runs", "chats.jsonl"], "no run can be kept there (Not a directory)"),
    ],
)
def test_a_folder_that_cannot_be_is_one_line(
    options: list[str], said: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, *options) == 2
    assert said in one_line(capsys)


@pytest.mark.parametrize("add", [["--trainer.logger", "CSVLogger"], ["--trainer.logger+=CSVLogger"]], ids=["=", "+="])
def test_loggers_of_ones_own_are_added(
    add: list[str], chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*add, "--trainer.logger.save_dir", "own", "--wandb.mode", "offline"]
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1", *own) == 0
    wandb.teardown()  # which writes what it still has
    (elsewhere,) = Path("own").rglob("metrics.csv")
    (recorded,) = Path("runs/one/wandb").glob("offline-run-*/*.wandb")
    for file in (Path("runs/one/metrics.csv"), elsewhere, recorded):
        assert b"val/loss" in file.read_bytes(), file
    assert "to CSVLogger, beside metrics.csv and Weights & Biases" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--trainer.max_steps 2", "ended by   --trainer.max_steps 2"),
        ("--trainer.max_time 00:00:00:00", "ended by its time limit (--trainer.max_time"),
        (
            "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/loss "
            "--trainer.callbacks.stopping_threshold 100 --trainer.max_epochs 3",
            "ended by   early stopping: Stopping threshold reached: val/loss",
        ),
        ("--trainer.max_epochs 3 --trainer.check_val_every_n_epoch 2", "the last 4 steps were not validated"),
    ],
)
def test_why_a_run_ended_is_said(
    options: str, said: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--data.batch_size", "4", *options.split()) == 0
    assert said in capsys.readouterr().out


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file system has locks."""

    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("lit_posttrain.runs.folder.fcntl.lockf", lockf)


@pytest.mark.usefixtures("unlocked")
def test_a_run_is_kept_where_a_file_system_has_no_locks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = RunLock(tmp_path / "run")
    lock.take()
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path}/run/.lock cannot be locked on this file system: ")
    lock.release()
    assert not lock.file.exists()


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize(
    ("owner", "refused"),
    [("living", True), ("ended", False), ("own", False), ("of another host", False), ("no owner", False)],
)
def test_without_locks_a_process_that_lives_is_believed(owner: str, refused: bool, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as living, subprocess.Popen(["true"]) as ended:
        ended.wait()
        numbers = {"living": living.pid, "ended": ended.pid, "own": os.getpid(), "of another host": living.pid}
        host = "elsewhere" if owner == "of another host" else socket.gethostname()
        lock = RunLock(tmp_path)
        lock.file.write_text(f"process {numbers[owner]} on {host}\n" if owner in numbers else "")
        try:
            with pytest.raises(PostTrainError) if refused else nullcontext() as found:
                lock.take()
        finally:
            living.kill()
    if found is not None:
        assert f"trained in by process {living.pid} on {host}; wait for it" in str(found.value)
        assert f"remove {lock.file}, if" in str(found.value)


def test_whose_a_checkpoint_is(chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the run that saved it, wherever that lies or is moved, and whatever is called so afterwards."""
    quick = ["--trainer.limit_val_batches", "0"]
    assert fit(chats, tiny_model, "--name", "b", *quick) == 0
    Path("latest.ckpt").symlink_to("runs/b/last.ckpt")
    more = ["--trainer.max_epochs", "2", *quick]
    assert fit(chats, tiny_model, "--name", "b", "--ckpt_path", "latest.ckpt", *more) == 0
    shutil.copy("runs/b/last.ckpt", "copied.ckpt")
    Path("runs/b").rename("runs/b-old")
    assert fit(chats, tiny_model, "--name", "b", *quick) == 0
    before = Path("runs/b/last.ckpt").read_bytes()
    capsys.readouterr()
    for file in ("runs/b-old/last.ckpt", "copied.ckpt"):
        assert fit(chats, tiny_model, "--name", "b", "--ckpt_path", file, *more) == 2
        assert f"runs/b holds a run already, which --ckpt_path {file} is not of" in one_line(capsys)
        assert Path("runs/b/last.ckpt").read_bytes() == before
    more[1] = "3"
    assert fit(chats, tiny_model, "--name", "b-old", "--ckpt_path", "copied.ckpt", *more) == 0
    assert len(Path("runs/b-old/metrics.csv").read_text().splitlines()) == 1 + 3, "it is gone on with"
    for content in ([1, 2], torch.zeros(2), {"lit_posttrain": 3}):
        torch.save(content, "odd.ckpt")
        assert fit(chats, tiny_model, "--name", "b", "--ckpt_path", "odd.ckpt") == 2
        found = "runs/b holds a run already" if isinstance(content, dict) else "odd.ckpt: not a checkpoint"
        assert found in one_line(capsys)
