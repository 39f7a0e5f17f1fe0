"""Killed at random moments and resumed, a run ends with bitwise the weights of the uninterrupted one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cases import METHODS
from helpers.processes import environment, run_script
from resumable import run

HERE = Path(__file__).parent


def kill_and_resume(method: str, model: Path, tmp_path: Path, kills: int) -> list[str]:
    """Kill a run `kills` times, let it end, compare; what it was doing at each kill."""
    data = tmp_path / "data"
    data.mkdir()
    run(method, model, tmp_path / "whole", data, slow_writes=False)
    whole = torch.load(tmp_path / "whole/weights.pt", weights_only=True)
    folder = tmp_path / "killed"
    folder.mkdir()
    chance = random.Random(0)
    command = [sys.executable, str(HERE / "resumable.py"), method, str(model), str(folder), str(data)]
    moments: list[str] = []
    while len(moments) < kills:
        (folder / "started").unlink(missing_ok=True)
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
        )
        while process.poll() is None and not (folder / "started").exists():
            time.sleep(0.01)
        # a step takes about 0.15 s here: some kills come before the first checkpoint, some a few steps later
        time.sleep(chance.uniform(0.0, 0.35))
        if process.poll() is not None:
            assert process.stderr is not None
            assert process.returncode == 0, process.stderr.read()[-3000:]
            assert moments, "the run ended before it could be killed"
            (folder / "weights.pt").unlink()
            (folder / "last.ckpt").unlink()  # it came to its end: begin again
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        known = {"started", "last.ckpt", "weights.pt"}
        writing = any(f.name not in known for f in folder.iterdir())
        moments.append("writing a checkpoint" if writing else "training")
    done = run_script(HERE / "resumable.py", *command[2:])
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = torch.load(folder / "weights.pt", weights_only=True)
    assert resumed["step"] == whole["step"]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]), name
    assert {f.name for f in folder.iterdir()} <= {"started", "last.ckpt", "weights.pt"}, "nothing half-written stays"
    return moments


@pytest.mark.parametrize("method", METHODS)
def test_killed_twice(method: str, tiny_model: Path, tmp_path: Path) -> None:
    kill_and_resume(method, tiny_model, tmp_path, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_twenty_times(method: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moments = kill_and_resume(method, tiny_model, tmp_path, kills=20)
    with capsys.disabled():
        print(f"\n{method}: 20 SIGKILLs ({moments.count('writing a checkpoint')} while writing); bitwise the same end")
