"""Ctrl-C in a terminal, and a scheduler's SIGTERM, reach all processes of a run: those of rewards too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.processes import environment

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


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_rewards_that_a_signal_has_reached_are_not_trained_on(
    number: signal.Signals, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(REWARDS)
    (tmp_path / "asked.jsonl").write_text("".join(f'{{"prompt": "about {i}"}}\n' for i in range(4)))
    reward = "{class_path: FunctionReward, init_args: {function: mine.%s}}"
    common = ["fit", "--config", "configs/dapo.yaml", "--model.policy.path", str(tiny_model)]
    common += ["--model.rewards", f"[{reward % 'sandbox'}, {reward % 'executor'}]"]
    common += OPTIONS.split()

    def start(*more: str) -> subprocess.Popen[str]:
        (tmp_path / "rewarding").unlink(missing_ok=True)
        code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        code += "from lit_posttrain.cli.main import main; sys.exit(main(sys.argv[1:]))"
        own = {**environment(), "LIT_POSTTRAIN_CACHE": str(tmp_path / "cache")}
        return subprocess.Popen(
            [sys.executable, "-c", code, *more], cwd=tmp_path, env=own, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    whole = start(*common, "--name", "whole")
    said, _ = whole.communicate(timeout=150)
    assert whole.returncode == 0, said
    stopped = start(*common, "--name", "one")
    while stopped.poll() is None and not (tmp_path / "runs/one/config.yaml").exists():
        time.sleep(0.05)
    (tmp_path / "rewarding").unlink(missing_ok=True)
    while stopped.poll() is None and not (tmp_path / "rewarding").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    os.killpg(stopped.pid, number)
    said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + number, said
    assert "go on from the last save with: lit-posttrain fit --resume one" in said
    resumed = start("fit", "--resume", "one")
    said, _ = resumed.communicate(timeout=150)
    assert resumed.returncode == 0, said
    weights = [
        torch.load(tmp_path / f"runs/{name}/last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "one")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
