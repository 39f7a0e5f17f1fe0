"""Killed while it samples, scores, steps and between phases, an on-policy run ends bitwise as the uninterrupted one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SAMPLING
from helpers.processes import run_script
from killed_phases import MOMENTS

TIMES = ("perf/", "seconds", "tokens_per_s")  # parts of the names of what depends on the clock


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with the runs of every method: importing all takes longer than a run."""
    folder = tmp_path_factory.mktemp("killed")
    done = run_script(Path(__file__).with_name("killed_phases.py"), tiny_model, folder, limit_s=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("method", SAMPLING)
def test_killed_at_every_moment_of_a_phase(method: str, home: Path) -> None:
    whole, killed = (home / method / name for name in ("whole", "killed"))
    ended = json.loads((home / method / "ended.json").read_text())
    assert ended["whole"]["status"] == 0, ended["whole"]["said"]
    for number in range(len(MOMENTS)):
        done = ended[f"killed {number}"]
        assert done["status"] == -9, done["said"]
        assert done["reached"] == list(MOMENTS[: number + 1])
    assert ended["last"]["status"] == 0, ended["last"]["said"]
    expected, found = (torch.load(folder / "end.pt", weights_only=True) for folder in (whole, killed))
    assert_same(found, expected, "")
    assert found["kl_coefficient"] != 0.1, "a coefficient that moves is part of the point"
    assert figures(killed) == figures(whole)


def assert_same(found: Any, expected: Any, place: str) -> None:
    """Bitwise, all the way down."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for name, value in expected.items():
            assert_same(found[name], value, f"{place}/{name}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    else:
        assert found == expected, place


def figures(folder: Path) -> list[dict[str, str]]:
    """What was logged, step by step, less what depends on the clock."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if not any(part in k for part in TIMES)} for row in rows]
