"""Killed at random moments and resumed, a run ends with bitwise the weights of the uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import METHODS
from helpers.processes import run_script


def kill_and_resume(method: str, model: Path, root: Path, kills: int) -> list[str]:
    """Kill a run `kills` times, let it end, compare; what it was doing at each kill."""
    done = run_script(Path(__file__).with_name("resumable.py"), method, model, root, kills, limit_s=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = (torch.load(root / name / "weights.pt", weights_only=True) for name in ("whole", "killed"))
    assert resumed["step"] == whole["step"]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]), name
    left = {file.name for file in (root / "killed").iterdir()}
    assert left <= {"started", "last.ckpt", "weights.pt", "output.txt"}, "nothing half-written stays"
    moments = done.stdout.splitlines()
    assert len(moments) == kills
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
