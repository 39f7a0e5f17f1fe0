"""What two processes say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.processes import environment
from helpers.runs import pairs, write
from helpers.trainer import ROOT


def test_two_processes_say_nothing_of_how_metrics_are_reduced(tiny_model: Path, tmp_path: Path) -> None:
    chats = write(tmp_path / "chats.jsonl", pairs(0, 16))
    command = ["fit", "--config", str(ROOT / "configs/sft.yaml"), "--data.path", chats, "--data.val_fraction", "0.3"]
    command += ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
    command += ["--trainer.devices", "2", "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "lit_posttrain", *command],
        env=environment() | {"LIT_POSTTRAIN_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "val/loss" in said
    assert "sync_dist" not in said
