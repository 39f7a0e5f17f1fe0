"""Killed at random moments and resumed, a run ends with bitwise the weights of the uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import METHODS
from helpers.processes import run_script


def kill_and_resume(model: Path, root: Path, kills: int, *methods: str) -> None:
    """Kill a run of each method `kills` times and let it end, and another one in peace."""
    done = run_script(Path(__file__).with_name("resumable.py"), model, root, kills, *methods, limit_s=3600)
    assert done.returncode == 0, done.stderr[-3000:]


def compared(root: Path, kills: int) -> list[str]:
    """Compare the runs of a method; what it was doing at each kill."""
    assert (root / "killed/weights.pt").exists(), (root / "output.txt").read_text()[-3000:]
    whole, resumed = (torch.load(root / name / "weights.pt", weights_only=True) for name in ("whole", "killed"))
    assert resumed["step"] == whole["step"]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]), name
    left = {file.name for file in (root / "killed").iterdir()}
    assert left <= {"started", "last.ckpt", "weights.pt", "output.txt"}, "nothing half-written stays"
    moments = (root / "moments.txt").read_text().splitlines()
    assert len(moments) == kills
    return moments


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with the runs of every method: importing all takes longer than a run."""
    folder = tmp_path_factory.mktemp("twice")
    kill_and_resume(tiny_model, folder, 2, *METHODS)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_killed_twice(method: str, twice: Path) -> None:
    compared(twice / method, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_twenty_times(method: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kill_and_resume(tiny_model, tmp_path, 20, method)
    moments = compared(tmp_path / method, kills=20)
    with capsys.disabled():
        print(f"\n{method}: 20 SIGKILLs ({moments.count('writing a checkpoint')} while writing); bitwise the same end")
