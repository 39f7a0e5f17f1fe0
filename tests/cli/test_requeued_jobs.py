"""Jobs that SLURM requeues, and the checkpoints (hpc_ckpt) that Lightning alone saves for them, and takes by itself."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import fit, one_line

from lit_posttrain import SFT
from lit_posttrain.cli.main import main


@pytest.fixture
def job(chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a job of SLURM; a file with what `scontrol` was asked."""
    scontrol, asked = tmp_path / "bin/scontrol", tmp_path / "asked.txt"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$*" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    task = {"NTASKS": "1", "JOB_ID": "12", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in task.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return asked


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's signal comes before the third step, once."""
    original = SFT.training_step

    def signalled_once(module: SFT, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == 2 and not Path("signalled").exists():
            Path("signalled").touch()
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(module, batch, batch_idx)

    monkeypatch.setattr(SFT, "training_step", signalled_once)


def files(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def step(name: str) -> int:
    return int(torch.load(f"runs/{name}", weights_only=True)["global_step"])


@pytest.mark.usefixtures("job", "signalled")
def test_a_requeued_job_goes_on_by_the_same_command(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("signalled").touch()  # no signal comes to the run that is compared with
    assert fit(chats, tiny_model, "--data.batch_size", "4", "--name", "whole") == 0
    Path("signalled").unlink()
    command = ["--resume", "auto", "--data.batch_size", "4"]
    assert fit(chats, tiny_model, *command) == 128 + signal.SIGUSR1
    assert "job 12 is requeued" in capsys.readouterr().out
    assert fit(chats, tiny_model, *command) == 0
    assert "requeued" not in capsys.readouterr().out
    assert not list(Path("runs/slurm-12").glob("hpc_ckpt*"))
    whole, found = (torch.load(f"runs/{name}/last.ckpt", weights_only=True) for name in ("whole", "slurm-12"))
    assert found["global_step"] == whole["global_step"] == 4
    assert all(torch.equal(found["state_dict"][name], value) for name, value in whole["state_dict"].items())


@pytest.mark.usefixtures("job")
def test_a_newer_last_checkpoint_is_not_lost_to_one_of_lightnings(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However old the files are by the clock, which copying changes."""
    assert fit(chats, tiny_model, "--name", "a") == 0
    shutil.copy("runs/a/last.ckpt", "hpc_ckpt_1.ckpt")
    assert main(["fit", "--resume", "a", "--trainer.max_epochs", "2"]) == 0
    shutil.copy("hpc_ckpt_1.ckpt", "runs/a")
    os.utime("runs/a/last.ckpt", (0, 0))
    before = files(Path("runs/a"))
    capsys.readouterr()
    assert fit(chats, tiny_model, "--name", "a", "--trainer.max_epochs", "3") == 2
    assert "runs/a holds a run already: go on with it (--resume a)" in one_line(capsys)
    assert files(Path("runs/a")) == before
    for resumed in (["--resume", "auto", "--name", "a"], ["--ckpt_path", "runs/a", "--name", "a"]):
        assert fit(chats, tiny_model, *resumed, "--trainer.max_epochs", "2") == 0
        assert "nothing was left to do: the run is at step 2" in capsys.readouterr().out
    os.rename("runs/a/last.ckpt", "runs/a/hpc_ckpt_2.ckpt")
    shutil.copy("hpc_ckpt_1.ckpt", "runs/a/last.ckpt")
    assert main(["fit", "--resume", "a", "--trainer.max_epochs", "3"]) == 0
    assert ", from step 2 on" in capsys.readouterr().out


@pytest.mark.usefixtures("job")
def test_a_run_is_begun_anew_beside_one_of_lightnings(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--name", "a", "--trainer.max_epochs", "2") == 0
    os.rename("runs/a/last.ckpt", "runs/a/hpc_ckpt_1.ckpt")
    before = files(Path("runs/a"))
    capsys.readouterr()
    anew = ["--name", "a", "--overwrite", "true", "--trainer.max_epochs", "3"]
    assert fit(chats, tiny_model, *anew, "--data.max_length", "2") == 2
    assert "raise --data.max_length" in one_line(capsys)
    assert files(Path("runs/a")) == before
    assert fit(chats, tiny_model, *anew) == 0
    assert ", from step " not in capsys.readouterr().out
    assert step("a/last.ckpt") == 3
    assert not {file.name for file in Path("runs/a").iterdir()} & {"hpc_ckpt_1.ckpt", ".replaced"}


@pytest.mark.usefixtures("job")
def test_what_is_measured_is_what_was_asked_for(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning would measure its own checkpoint, though the report speaks of the model as it is."""
    assert fit(chats, tiny_model, "--name", "a") == 0
    os.rename("runs/a/last.ckpt", "runs/a/hpc_ckpt_1.ckpt")
    capsys.readouterr()
    validate = ["validate", "--config", "runs/a/config.yaml"]
    assert main(validate) == 2
    assert "validate without a --ckpt_path would take runs/a/hpc_ckpt_1.ckpt in a SLURM job" in one_line(capsys)
    for given, said in (["best", "best"], ["hpc", "hpc_ckpt_1"]):
        assert main([*validate, "--ckpt_path", given]) == 0
        assert f"with the weights of runs/a/{said}.ckpt" in capsys.readouterr().out


@pytest.mark.usefixtures("signalled")
@pytest.mark.parametrize("given", [[], ["--name", "a"], ["--name", "a", "--overwrite", "true"]])
def test_a_job_is_not_requeued_whose_command_would_not_go_on(
    given: list[str], chats: Path, tiny_model: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--data.batch_size", "4", *given) == 128 + signal.SIGUSR1
    assert not job.exists()
    said = capsys.readouterr().out
    assert "the job is not requeued: its command would not go on with the run; with --resume auto it would" in said
    (run,) = Path("runs").iterdir()
    assert f"lit-posttrain fit --resume {run.name}" in said
    assert step(f"{run.name}/last.ckpt") == 3


@pytest.mark.usefixtures("signalled")
@pytest.mark.parametrize("resumed", [["--resume", "a"], ["--resume", "auto", "--name", "a"]])
def test_a_job_that_goes_on_with_a_run_is_requeued(
    resumed: list[str], chats: Path, tiny_model: Path, job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(chats, tiny_model, "--data.batch_size", "4", "--trainer.max_steps", "1", "--name", "a") == 0
    command = ["fit", *resumed, "--trainer.max_steps", "-1"]
    assert main(command) == 128 + signal.SIGUSR1
    assert job.read_text() == "requeue 12\n"
    assert main(command) == 0
    assert ", from step 3 on" in capsys.readouterr().out


@pytest.mark.usefixtures("signalled")
def test_a_job_that_always_begins_with_the_same_checkpoint_is_not_requeued(
    chats: Path, tiny_model: Path, job: Path
) -> None:
    assert fit(chats, tiny_model, "--data.batch_size", "4", "--trainer.max_steps", "1", "--name", "a") == 0
    shutil.copy("runs/a/last.ckpt", "kept.ckpt")
    command = ["fit", "--resume", "a", "--ckpt_path", "kept.ckpt", "--trainer.max_steps", "-1"]
    assert main(command) == 128 + signal.SIGUSR1
    assert not job.exists()
