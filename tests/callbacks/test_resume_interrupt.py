"""A run that was stopped and goes on is the run that was never stopped: same batches, metrics and bits of weights."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_posttrain.callbacks import BestCheckpoint, FiniteLossGuard, GracefulInterrupt, LastCheckpoint, run_checkpoints
from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.signals import RunStopped


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


def assert_goes_on(whole: Any, first_steps: int, resumed: Any, made_up: bool = False) -> None:
    """The resumed run is the tail of the whole one after so many optimizer steps; made_up: behind the training of the
    last of them, before its validation."""
    assert resumed.batches == [b for b in whole.batches if b[0] >= first_steps]
    rows = [(step, row) for step, row in whole.rows if step >= first_steps]
    validations = [(step, row) for step, row in whole.rows if step == first_steps - 1 and "val/loss" in row]
    assert resumed.rows == (validations[-1:] if made_up else []) + rows
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
    assert_goes_on(whole, steps, resumed, made_up=validate and steps % 5 == 0)
    assert stopped.rows + resumed.rows == whole.rows
    assert resumed.trainer.current_epoch == 3


@pytest.mark.parametrize("at", [0, 1, 5])
def test_ctrl_c_during_validation_gives_it_up(fit_in: Any, whole_run: Any, tmp_path: Path, at: int) -> None:
    """A scheduler does not wait for the end of a long one. The last one too: the run that goes on has it to do."""
    whole = whole_run(max_epochs=3, validate=True)
    ctrl_c = CtrlC(at, "on_validation_batch_start")
    with pytest.raises(RunStopped):
        fit_in(tmp_path / "run", [*guards(), ctrl_c], max_epochs=3, validate=True)
    assert ctrl_c.seen == at
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/last.ckpt", max_epochs=3, validate=True)
    assert_goes_on(whole, 5 * (at // 2 + 1), resumed, made_up=True)


class RestoresLate(SingleDeviceStrategy):
    """Reads the checkpoint after the model is set up, as strategies that shard do."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, RestoresLate])
def test_killed_in_the_validation_of_the_last_step(
    strategy: type[SingleDeviceStrategy], fit_in: Any, tmp_path: Path
) -> None:
    """It is made up, though no step is left."""
    options = {"max_steps": 4, "max_epochs": -1, "validate": True, "val_check_interval": 6}
    whole = fit_in(tmp_path / "run", [BestCheckpoint(), KeepCopy(4, 100)], **options)
    (tmp_path / "run/best.ckpt").unlink()
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/kept.ckpt", strategy=strategy("cpu"), **options)
    assert_goes_on(whole, 4, resumed, made_up=True)
    assert torch.load(tmp_path / "run/best.ckpt", weights_only=True)["global_step"] == 4


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


def test_fewer_epochs_than_were_trained_are_refused_with_a_remedy(fit_in: Any, tmp_path: Path) -> None:
    fit_in(tmp_path, [LastCheckpoint()], max_epochs=3)
    said = r"--trainer.max_epochs is 1, and the checkpoint is of epoch 3: pass at least 3 to train on"
    with pytest.raises(PostTrainError, match=said):
        fit_in(tmp_path, [], max_epochs=1, resume=tmp_path / "last.ckpt")


@pytest.mark.parametrize("step", [1, 5, 6])
def test_crash_after_any_step(fit_in: Any, tmp_path: Path, step: int) -> None:
    """The first file of a step: at an epoch's end the one from before its validation, which is made up."""
    whole = fit_in(tmp_path / "run", [BestCheckpoint(), KeepCopy(step, 1)], max_epochs=3, validate=True)
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/kept.ckpt", max_epochs=3, validate=True)
    assert_goes_on(whole, step, resumed, made_up=step == 5)


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


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_train_steps": 2, "save_top_k": -1},
        {"train_time_interval": timedelta(0), "save_top_k": -1},
        {"monitor": "val/loss", "save_top_k": 2},
        {"save_on_train_epoch_end": True, "save_top_k": -1, "save_last": True},
        {"save_on_exception": True},
    ],
)
def test_whatever_lightning_saves_is_resumed_exactly(
    options: dict[str, Any], fit_in: Any, whole_run: Any, tmp_path: Path
) -> None:
    """ModelCheckpoint writes in the middle of accumulations, at ends of epochs and after errors; early stopping looks
    for its metric at the end of an epoch that is resumed at its end."""
    whole = whole_run(max_epochs=2, validate=True)

    class Fails(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if "save_on_exception" in options and (trainer.global_step, batch_idx % 3) == (7, 1):
                raise RuntimeError("stop")

    def callbacks() -> list[pl.Callback]:
        return [EarlyStopping("val/loss"), *guards()]

    saving = ModelCheckpoint(tmp_path / "files", filename="{step}", **options)
    with pytest.raises(RuntimeError, match="stop") if "save_on_exception" in options else nullcontext():
        fit_in(tmp_path / "run", [Fails(), saving, *callbacks()], max_epochs=2, validate=True)
    files = sorted((tmp_path / "files").glob("*.ckpt"))
    assert files
    for file in [*files, tmp_path / "run/last.ckpt"]:
        resumed = fit_in(tmp_path / "next", callbacks(), resume=file, max_epochs=2, validate=True)
        assert resumed.same_weights(whole), file
        assert resumed.trainer.global_step == 10


def test_early_stopping_does_not_mind_a_stop_in_the_first_epoch(fit_in: Any, whole_run: Any, tmp_path: Path) -> None:
    early = EarlyStopping("val/loss")
    stopped = fit_in(tmp_path / "run", [early, *guards(), CtrlC(4)], max_epochs=3, validate=True)
    assert stopped.trainer.global_step == 2
    assert early in stopped.trainer.callbacks
    again = EarlyStopping("val/loss")
    resumed = fit_in(
        tmp_path / "run", [again, *guards()], resume=tmp_path / "run/last.ckpt", max_epochs=3, validate=True
    )
    assert_goes_on(whole_run(max_epochs=3, validate=True), 2, resumed)


def test_an_error_saves_the_last_step_that_ended(
    fit_in: Any, whole_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails(pl.Callback):
        def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                raise ValueError("a reward of one's own")

    last = LastCheckpoint(100, "lit-posttrain fit --resume x")
    with pytest.raises(ValueError, match="of one's own"):
        fit_in(tmp_path / "run", [Fails(), last], max_epochs=3)
    assert f"step 7 is saved in {tmp_path / 'run/last.ckpt'}; go on with: lit-posttrain fit --resume x" in (
        capsys.readouterr().out
    )
    resumed = fit_in(tmp_path / "run", guards(), resume=tmp_path / "run/last.ckpt", max_epochs=3)
    assert_goes_on(whole_run(max_epochs=3, validate=False), 7, resumed)
