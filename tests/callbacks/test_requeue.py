"""SLURM's signal that a job's time is nearly over: the run stops at a step's end, saved; the job is requeued, and goes
on."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from lit_posttrain.callbacks import FiniteLossGuard, GracefulInterrupt, run_checkpoints
from lit_posttrain.runs.signals import RunStopped

ONE_TASK = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
JOB = {**ONE_TASK, "SLURM_NODEID": "0", "SLURM_JOB_ID": "12"}


def guards() -> list[pl.Callback]:
    return [FiniteLossGuard(), GracefulInterrupt("lit-posttrain fit --resume x"), *run_checkpoints(100)]


class Signalled(pl.Callback):
    """Gets a signal once, at the `at`-th time that a hook is called."""

    def __init__(self, hook: str, at: int, number: int = signal.SIGUSR1) -> None:
        self.left, self.number = at, number
        setattr(self, hook, self._called)

    def _called(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with what `scontrol` was asked, and what lay in the run's folder by then."""
    scontrol, found = tmp_path / "bin/scontrol", tmp_path / "calls.txt"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$*:" $(ls {tmp_path / "run"}) >> {found}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    return found


# within a step, behind its update, at its end, between epochs, in a validation and in a save; 3 micro-batches a step, 5
# steps an epoch
@pytest.mark.parametrize(
    ("hook", "at", "steps"),
    [
        ("on_train_batch_start", 8, 3),
        ("on_before_optimizer_step", 3, 3),
        ("on_before_zero_grad", 3, 3),
        ("on_train_batch_end", 9, 4),  # behind the look at whether to stop
        ("on_validation_batch_start", 2, 5),
        ("on_save_checkpoint", 1, 5),
        ("on_train_epoch_end", 1, 6),
    ],
)
def test_a_requeued_job_goes_on(
    fit_in: Any, calls: Path, tmp_path: Path, hook: str, at: int, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"max_epochs": 2, "validate": True}
    whole = fit_in(tmp_path / "whole", guards(), **options)
    assert not calls.exists(), "a run that ends by itself is not requeued"
    before = signal.getsignal(signal.SIGUSR1)
    with suppress(RunStopped):
        fit_in(tmp_path / "run", [*guards(), Signalled(hook, at)], **options)
    found = "best.ckpt last.ckpt" if steps > 5 else "last.ckpt"  # and no file of Lightning's
    assert calls.read_text() == f"requeue 12: {found}\n"
    assert "job 12 is requeued" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR1) == before
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == steps
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/last.ckpt", **options)
    assert resumed.batches == [batch for batch in whole.batches if batch[0] >= steps]
    assert resumed.same_weights(whole)
    assert resumed.module.num_tokens == whole.module.num_tokens
    validations = [row for step, row in whole.rows if "val/loss" in row and step >= steps - 1]
    assert [row for _, row in resumed.rows if "val/loss" in row] == validations
    assert len(calls.read_text().splitlines()) == 1


@pytest.mark.parametrize("saving", [True, False], ids=["with LastCheckpoint", "alone"])
def test_the_script_of_a_requeued_job_goes_on_by_itself(
    saving: bool, fit_in: Any, calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `trainer.fit` without a ckpt_path, as under Lightning alone, twice; from what was saved last of all."""

    def own() -> list[pl.Callback]:
        return [GracefulInterrupt(), *(run_checkpoints(100) if saving else [])]

    whole = fit_in(tmp_path / "whole", own(), max_epochs=2)
    for at, steps in ((5, 2), (5, 4)):
        fit_in(tmp_path / "run", [*own(), Signalled("on_train_batch_start", at)], max_epochs=2)
        assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == steps
    assert "job 12 is requeued" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "run").glob("*ckpt*")) == ["hpc_ckpt_1.ckpt", "last.ckpt"]
    resumed = fit_in(tmp_path / "run", own(), max_epochs=2)
    assert resumed.batches == [batch for batch in whole.batches if batch[0] >= 4]
    assert resumed.same_weights(whole)
    assert len(calls.read_text().splitlines()) == 2


def test_the_script_goes_on_from_what_is_newer_than_a_checkpoint_of_lightnings(
    fit_in: Any, calls: Path, tmp_path: Path
) -> None:
    fit_in(tmp_path / "run", [*run_checkpoints(100)], max_steps=1)
    (tmp_path / "run/last.ckpt").rename(tmp_path / "run/hpc_ckpt_3.ckpt")
    stopping = [GracefulInterrupt(), *run_checkpoints(100), Signalled("on_train_batch_start", 5)]
    fit_in(tmp_path / "run", stopping, max_epochs=2)
    assert (tmp_path / "run/hpc_ckpt_4.ckpt").samefile(tmp_path / "run/last.ckpt")
    assert fit_in(tmp_path / "run", [], max_steps=4).batches[0][0] == 3


def test_where_it_could_not_go_on_the_job_is_not_requeued(
    fit_in: Any, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    own = [GracefulInterrupt(), *run_checkpoints(100), Signalled("on_train_batch_start", 5)]
    fit_in(tmp_path / "run", own, max_epochs=1)
    assert not calls.exists()
    assert "the job is not requeued: no link to " in capsys.readouterr().out


def test_a_signal_in_the_sanity_check_ends_the_run_unsaved(
    fit_in: Any, calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = [*guards(), Signalled("on_validation_batch_start", 1)]
    stopped = fit_in(tmp_path / "run", stopping, max_epochs=1, validate=True, num_sanity_val_steps=1)
    assert stopped.batches == []
    assert calls.read_text() == "requeue 12:\n"
    assert "stopped at step 0; nothing was saved yet" in capsys.readouterr().out


def test_a_job_of_an_array_and_one_that_cannot_be_requeued(
    fit_in: Any, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    fit_in(tmp_path / "run", [*guards(), Signalled("on_train_batch_start", 2)], max_epochs=1)
    assert calls.read_text().startswith("requeue 7_3: ")
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho Job has no requeue >&2; exit 1\n")
    fit_in(tmp_path / "run", [*guards(), Signalled("on_train_batch_start", 2)], max_epochs=1)
    told = "the job is not requeued: `scontrol requeue 7_3` failed (Job has no requeue)"
    assert told in capsys.readouterr().out


def test_other_signals_and_other_plugins(fit_in: Any, calls: Path, tmp_path: Path) -> None:
    fit_in(tmp_path / "run", [*guards(), Signalled("on_train_batch_start", 2, signal.SIGINT)], max_epochs=1)
    assert not calls.exists()
    other = SLURMEnvironment(requeue_signal=signal.SIGUSR2)
    stopping = [*guards(), Signalled("on_train_batch_start", 2, signal.SIGUSR2)]
    fit_in(tmp_path / "run", stopping, max_epochs=1, plugins=[other])
    assert calls.read_text() == "requeue 12: last.ckpt\n"
