"""A run that was stopped and goes on is the run that was never stopped: same batches, metrics and bits of weights."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lit_posttrain.callbacks import BestCheckpoint, FiniteLossGuard, GracefulInterrupt, LastCheckpoint, run_checkpoints


class CtrlC(pl.Callback):
    """Sends SIGINT to this process inside the training or validation of micro-batch number `at` of the run."""

    def __init__(self, at: int, hook: str = "on_before_backward", times: int = 1) -> None:
        self.at, self.hook, self.times, self.seen = at, hook, times, -1

    def _count(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)

    def on_before_backward(self, *_: Any) -> None:
        if self.hook == "on_before_backward":
            self._count()

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        if self.hook == "on_validation_batch_start":
            self._count()


class StopAt(pl.Callback):
    """Asks to stop after micro-batch number `at`, as a time limit does, accumulation or not."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, -1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self.seen += 1
        if self.seen == self.at:
            trainer.should_stop = True


class KeepCopy(LastCheckpoint):
    """last.ckpt as it was when it held a given step for the first time: what a crash right after would leave."""

    def __init__(self, step: int, every_n_steps: int) -> None:
        super().__init__(every_n_steps)
        self.step = step

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        kept = Path(trainer.default_root_dir) / "kept.ckpt"
        if trainer.global_step == self.step and not kept.exists():
            shutil.copy(Path(trainer.default_root_dir) / "last.ckpt", kept)


def guards() -> list[pl.Callback]:
    return [FiniteLossGuard(), GracefulInterrupt("lit-posttrain fit --resume x"), *run_checkpoints(100)]


@pytest.fixture(scope="module")
def whole_run(fit_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Uninterrupted runs, one for each set of options."""
    done: dict[str, Any] = {}

    def whole_run(**options: Any) -> Any:
        key = repr(sorted(options.items()))
        if key not in done:
            done[key] = fit_in(tmp_path_factory.mktemp("whole"), guards(), **options)
        return done[key]

    return whole_run


def assert_goes_on(whole: Any, first_steps: int, resumed: Any) -> None:
    """The resumed run is the tail of the whole one after so many optimizer steps."""
    assert resumed.batches == [b for b in whole.batches if b[0] >= first_steps]
    rows = [(step, row) for step, row in whole.rows if step >= first_steps]
    assert resumed.rows == rows
    assert resumed.same_weights(whole)
    assert resumed.module.num_tokens == whole.module.num_tokens


@pytest.mark.parametrize(
    ("at", "validate", "log_every"),
    [(4, False, 1), (8, False, 2), (12, True, 1), (14, False, 1), (14, True, 2), (22, True, 1), (29, False, 1)],
)
def test_ctrl_c_then_resume(
    fit_in: Any, whole_run: Any, tmp_path: Path, at: int, validate: bool, log_every: int
) -> None:
    """15 micro-batches an epoch, 3 a step: in the middle of an accumulation, at its end, at an epoch's end."""
    options = {"max_epochs": 3, "validate": validate, "log_every_n_steps": log_every}
    whole = whole_run(**options)
    stopped = fit_in(tmp_path / "run", [*guards(), CtrlC(at)], **options)
    steps = at // 3 + 1
    assert stopped.trainer.global_step == steps
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"] == steps
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/last.ckpt", **options)
    assert_goes_on(whole, steps, resumed)
    assert resumed.trainer.current_epoch == 3


def test_ctrl_c_during_validation_stops_behind_it(fit_in: Any, whole_run: Any, tmp_path: Path) -> None:
    whole = whole_run(max_epochs=3, validate=True)
    ctrl_c = CtrlC(1, "on_validation_batch_start")
    stopped = fit_in(tmp_path / "run", [*guards(), ctrl_c], max_epochs=3, validate=True)
    assert stopped.trainer.global_step == 5
    assert "val/loss" in stopped.rows[-1][1]
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/last.ckpt", max_epochs=3, validate=True)
    assert_goes_on(whole, 5, resumed)


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("max_steps", [4, 5])
def test_more_steps_after_max_steps(
    fit_in: Any, whole_run: Any, tmp_path: Path, max_steps: int, validate: bool
) -> None:
    """5 and 10 end an epoch, where Lightning alone replays a phantom batch (issue 19617)."""
    options = {"max_epochs": -1, "validate": validate, "schedule": "constant"}
    whole = whole_run(max_steps=15, **options)
    fit_in(tmp_path / "run", guards(), max_steps=max_steps, **options)
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/last.ckpt", max_steps=15, **options)
    assert_goes_on(whole, max_steps, resumed)


@pytest.mark.parametrize(("epochs", "validate"), [(1, False), (2, True)])
def test_more_epochs_after_the_end(fit_in: Any, whole_run: Any, tmp_path: Path, epochs: int, validate: bool) -> None:
    options = {"validate": validate, "schedule": "constant"}
    whole = whole_run(max_epochs=3, **options)
    fit_in(tmp_path / "run", guards(), max_epochs=epochs, **options)
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/last.ckpt", max_epochs=3, **options)
    assert_goes_on(whole, 5 * epochs, resumed)


@pytest.mark.parametrize("step", [1, 5, 6])
def test_crash_after_any_step(fit_in: Any, tmp_path: Path, step: int) -> None:
    """The first file of a step: at an epoch's end the one from before its validation, which is not repeated."""
    whole = fit_in(tmp_path / "run", [BestCheckpoint(), KeepCopy(step, 1)], max_epochs=3, validate=True)
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/kept.ckpt", max_epochs=3, validate=True)
    assert_goes_on(whole, step, resumed)


def test_resume_from_best(fit_in: Any, whole_run: Any, tmp_path: Path) -> None:
    options = {"max_epochs": 3, "validate": True, "val_check_interval": 6}
    whole = whole_run(**options)
    fit_in(tmp_path / "run", [*guards(), CtrlC(32)], **options)
    step = torch.load(tmp_path / "run/best.ckpt", weights_only=True)["global_step"]
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/best.ckpt", **options)
    assert_goes_on(whole, step, resumed)


def test_stop_request_waits_for_the_step(fit_in: Any, whole_run: Any, tmp_path: Path) -> None:
    whole = whole_run(max_epochs=2)
    stopped = fit_in(tmp_path / "run", [*guards(), StopAt(7)], max_epochs=2)
    assert (len(stopped.batches), stopped.trainer.global_step) == (9, 3)
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/last.ckpt", max_epochs=2)
    assert_goes_on(whole, 3, resumed)


def test_interrupt_speaks_and_leaves_no_trace(fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt = GracefulInterrupt("lit-posttrain fit --resume x")
    stopped = fit_in(tmp_path, [interrupt, CtrlC(1)], validate=True, max_epochs=1)
    assert interrupt.interrupted
    assert "stopped at step 1; go on with: lit-posttrain fit --resume x" in capsys.readouterr().out
    assert (tmp_path / "last.ckpt").exists()  # saved by itself, there being no LastCheckpoint
    assert not any("val/loss" in row for _, row in stopped.rows)
    assert stopped.trainer.limit_val_batches == 1.0
    assert signal.getsignal(signal.SIGINT) is before
    assert not fit_in(tmp_path / "other", [interrupt], max_steps=1).trainer.should_stop
    assert not interrupt.interrupted


def test_second_ctrl_c_stops_at_once(fit_in: Any, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_in(tmp_path, [*guards(), CtrlC(1, times=2)], max_epochs=1)
    assert not (tmp_path / "last.ckpt").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_signals_alone(fit_in: Any, tmp_path: Path) -> None:
    done: list[int] = []
    work = threading.Thread(
        target=lambda: done.append(fit_in(tmp_path, [GracefulInterrupt()], max_steps=1).trainer.global_step)
    )
    work.start()
    work.join()
    assert done == [1]
