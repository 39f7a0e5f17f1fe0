"""What is said before training, and the time that is left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn

from lit_posttrain.callbacks import LastCheckpoint, RunPlan
from lit_posttrain.callbacks.memory import optimizer_state_bytes, parameter_bytes
from lit_posttrain.callbacks.run_plan import duration
from lit_posttrain.data.audit.file_audit import FileAudit, Tally
from lit_posttrain.data.audit.report import AuditReport


class Audited(pl.LightningDataModule):
    def __init__(self, train: Any, val: Any) -> None:
        super().__init__()
        self.train, self.val = train, val
        file = FileAudit("train.jsonl", rows=1240, examples=1200, tokens=310_552, trained_tokens=124_221)
        file.dropped = {"empty": Tally(40, [3])}
        self.audit = AuditReport([file], file)

    def train_dataloader(self) -> Any:
        return self.train

    def val_dataloader(self) -> Any:
        return self.val


def test_plan_says_what_will_happen(fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit_in(tmp_path, [RunPlan()], datamodule=Audited, max_epochs=2)
    out = capsys.readouterr().out
    count = sum(p.numel() for p in run.module.parameters())
    weights = count * 4 / 1e9
    lines = [
        "data       1,240 rows (40 dropped), 310,552 tokens, 40.0% of them trained",
        "steps      10 optimizer steps: 2 epochs of 5",
        "batch      4 rows a step, in 3 micro-batches x 1 process",
        f"model      {count / 1e3:.4g}k parameters, {count / 1e3:.4g}k trained (100.00%)",
        "precision  32-true on cpu x 1",
        f"rate       {run.module.optimizer_settings['lr']:g}",
        f"memory     {4 * weights:.2f} GB a process (weights {weights:.2f}, gradients {weights:.2f}, "
        f"AdamW state {2 * weights:.2f}); activations on top",
        f"folder     {tmp_path}",
    ]
    assert out.startswith("\n".join(lines) + "\n")
    assert re.search(r"^about \d+ s left \(7 steps of \S+ s; validation comes on top\)$", out, re.MULTILINE)


def test_resumed_plan_counts_what_is_left(fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit_in(tmp_path, [LastCheckpoint()], max_steps=4, max_epochs=-1)
    capsys.readouterr()
    fit_in(tmp_path, [RunPlan()], max_steps=12, max_epochs=-1, resume=tmp_path / "last.ckpt")
    out = capsys.readouterr().out
    assert out.startswith("steps      12 optimizer steps, from step 4 on: 2.4 epochs of 5\n")
    assert "left (5 steps of " in out
    assert "data " not in out


@pytest.mark.parametrize("ended_by", ["max_steps", "max_epochs"])
def test_says_which_limit_ends_a_run(
    ended_by: str, fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"max_steps": 3, "max_epochs": 2} if ended_by == "max_steps" else {"max_steps": 99, "max_epochs": 1}
    fit_in(tmp_path, [RunPlan(), LastCheckpoint()], **limits)
    assert ("(sooner than --trainer.max_steps 99)" in capsys.readouterr().out) == (ended_by == "max_epochs")
    fit_in(tmp_path, [RunPlan()], **limits, resume=tmp_path / "last.ckpt")
    assert f"raise --trainer.{ended_by} for more" in capsys.readouterr().out


def test_a_run_without_rows_to_validate_on_does_not_speak_of_validation(
    fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = lambda train, val: Audited(train, [])  # noqa: E731  # what a data module without validation gives
    fit_in(tmp_path, [RunPlan()], datamodule=Audited, max_steps=4, max_epochs=1)
    assert "validation none: --trainer.max_steps 4 comes before it" in (out := capsys.readouterr().out)
    assert "comes on top" not in out
    fit_in(tmp_path, [RunPlan()], datamodule=without, max_steps=4, max_epochs=1)
    assert "validation" not in (out := capsys.readouterr().out)
    assert "about " in out


def test_the_last_step_of_the_epochs_is_not_ended_by_max_steps(
    fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_in(tmp_path, [RunPlan()], max_steps=5, max_epochs=1)
    assert "ended by" not in capsys.readouterr().out
    fit_in(tmp_path, [RunPlan()], max_steps=5, max_epochs=2)
    assert "ended by   --trainer.max_steps 5\n" in capsys.readouterr().out


def test_a_run_whose_time_is_over_says_how_to_go_on(
    fit_in: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_in(tmp_path, [RunPlan(), Timer("00:00:00:00")], max_epochs=1)
    said = "ended by its time limit (--trainer.max_time, or Timer); for more pass a longer --trainer.max_time, or null"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "measured_by"),
    [
        (lambda p: torch.optim.AdamW(p), 2),
        (lambda p: torch.optim.SGD(p, lr=0.1), 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1),
        (lambda p: torch.optim.RMSprop(p), 1),
        (lambda p: torch.optim.Adagrad(p), 1),
        (lambda p: torch.optim.NAdam(p), 2),
        (lambda p: torch.optim.Adamax(p), 2),
    ],
)
def test_optimizer_state_is_what_it_takes(make: Any, measured_by: int) -> None:
    layer = nn.Linear(100, 100, bias=False)
    optimizer = make(layer.parameters())
    layer(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    states = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.dim() == 2]
    assert optimizer_state_bytes(optimizer) == sum(t.numel() * t.element_size() for t in states)
    assert optimizer_state_bytes(optimizer) == measured_by * parameter_bytes(layer.parameters())


def test_unknown_optimizer_is_said_to_be() -> None:
    assert optimizer_state_bytes(torch.optim.ASGD(nn.Linear(2, 2).parameters())) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (4790, "1 h 20 min"), (270_000, "3 d 3 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
