"""Ctrl-C and SIGTERM, before and in training."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import fit

from lit_posttrain import SFT
from lit_posttrain.cli.main import main


@pytest.fixture
def ctrl_c_works() -> Iterator[None]:
    """A shell starts its background jobs with Ctrl-C ignored, and tests may run in one."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c_works")
@pytest.mark.parametrize(
    ("at", "sent", "status", "said"),
    [
        (2, [signal.SIGINT], 130, "stopped at step 2; go on with: lit-posttrain fit --resume one"),
        (2, [signal.SIGTERM], 143, "stopped at step 2; go on with: lit-posttrain fit --resume one"),
        (2, [signal.SIGINT, signal.SIGINT], 130, "stopped at once, at step 1; go on from the last save"),
        (4, [signal.SIGINT], 0, "done       step 4"),
    ],
)
def test_signals(
    at: int,
    sent: list[signal.Signals],
    status: int,
    said: str,
    chats: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = SFT.training_step

    def sends(module: SFT, batch: Any, batch_idx: int) -> Any:
        if module.trainer.global_step == at - 1:
            for number in sent:
                os.kill(os.getpid(), number)
        return original(module, batch, batch_idx)

    monkeypatch.setattr(SFT, "training_step", sends)
    options = ["--name", "one", "--data.batch_size", "4", "--trainer.max_epochs", "1", "--checkpoint_every", "1"]
    assert fit(chats, tiny_model, *options) == status
    assert said in capsys.readouterr().out
    assert torch.load("runs/one/last.ckpt", weights_only=True)["global_step"] == int(said.split("step ")[1][0])
    assert Path("runs/one/best.ckpt").exists() == (at == 4), "the last step is validated"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    monkeypatch.undo()


@pytest.mark.usefixtures("ctrl_c_works")
def test_ctrl_c_before_training_leaves_nothing(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = SFT.configure_model

    def sends(module: SFT) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original(module)

    monkeypatch.setattr(SFT, "configure_model", sends)
    assert fit(chats, tiny_model, "--name", "one", "--wandb.mode", "offline") == 130
    told = "interrupted before a step was taken: nothing was saved yet, start it again"
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert not Path("runs").exists()
    monkeypatch.setattr(SFT, "configure_model", original)
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1") == 0
    monkeypatch.setattr(SFT, "configure_model", sends)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it from the first interrupt on
    assert main(["fit", "--resume", "one", "--trainer.max_epochs", "2", "--trainer.max_steps", "2"]) == 130
    told = "before a step was taken: go on from the last checkpoint: lit-posttrain fit --resume one"
    assert capsys.readouterr().err.splitlines()[-1] == f"interrupted {told}"
    assert Path("runs/one/last.ckpt").exists()


@pytest.mark.usefixtures("ctrl_c_works")
def test_ctrl_c_while_torch_is_loaded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def sends(name: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("lit_posttrain.cli.main.import_module", sends)
    monkeypatch.delitem(sys.modules, "lit_posttrain.cli.training", raising=False)
    assert main(["fit", "--config", "sft.yaml", "--data.path", "builtin:demo_sft"]) == 130
    assert capsys.readouterr().err == "interrupted before a step was taken\n"
