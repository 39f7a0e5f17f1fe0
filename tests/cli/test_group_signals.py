"""Ctrl-C in a terminal, and a scheduler's SIGTERM, reach all processes of a run: those of rewards too."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers.processes import ended, ended_within, forked

from lit_posttrain.cli.main import main

REWARDS = """
import os, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

def size(said):
    time.sleep(0.02)
    return float(len(said))

def sandbox(completions, **_):
    # what dies by a signal has no points, and a bare `except` hides why
    found = []
    for said in completions:
        try:
            Path("rewarding").touch()
            status = subprocess.run([sys.executable, "-c", "import time; time.sleep(0.2)"]).returncode
        except:
            status = -1
        found.append(float(len(said) + (100 if status == 0 else 0)))
    return found

EXECUTOR = None

def executor(completions, **_):
    global EXECUTOR
    EXECUTOR = EXECUTOR or ProcessPoolExecutor(1)
    return list(EXECUTOR.map(size, completions))
"""

OPTIONS = """
--data.path asked.jsonl --data.val_fraction 0 --data.batch_size 2 --model.rollout.group_size 2
--model.rollout.minibatches 1 --model.rollout.max_new_tokens 4 --trainer.max_epochs 3
--trainer.accumulate_grad_batches 1 --trainer.accelerator cpu --trainer.precision 32-true --wandb.mode disabled
"""


def command(words: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal's shell leaves it
    return main(words)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_rewards_that_a_signal_has_reached_are_not_trained_on(
    number: signal.Signals, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(REWARDS)
    (tmp_path / "asked.jsonl").write_text("".join(f'{{"prompt": "about {i}"}}\n' for i in range(4)))
    reward = "{class_path: FunctionReward, init_args: {function: mine.%s}}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    common = ["fit", "--config", "configs/dapo.yaml", "--model.policy.path", str(tiny_model)]
    common += ["--model.rewards", f"[{reward % 'sandbox'}, {reward % 'executor'}]"]
    common += OPTIONS.split()

    def start(name: str, *words: str) -> int:
        return forked(command, [*words], output=Path(name), session=True)

    assert ended_within(start("whole.txt", *common, "--name", "whole"), 150) == 0, Path("whole.txt").read_text()
    stopped = start("stopped.txt", *common, "--name", "one")
    for mark in ("runs/one/config.yaml", "rewarding"):
        Path("rewarding").unlink(missing_ok=True)
        while not Path(mark).exists():
            assert ended(stopped) is None, Path("stopped.txt").read_text()
            time.sleep(0.01)
    time.sleep(0.05)
    os.killpg(stopped, number)
    status = ended_within(stopped, 60)
    said = Path("stopped.txt").read_text()
    assert status == 128 + number, said
    assert "go on from the last save with: lit-posttrain fit --resume one" in said
    assert ended_within(start("resumed.txt", "fit", "--resume", "one"), 150) == 0, Path("resumed.txt").read_text()
    weights = [
        torch.load(tmp_path / f"runs/{name}/last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "one")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
