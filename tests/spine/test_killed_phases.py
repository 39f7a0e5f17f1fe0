"""Killed while it samples, scores, steps and between phases, an on-policy run ends bitwise as the uninterrupted one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SAMPLING
from helpers.processes import run_script
from killed_phases import MOMENTS, run

TIMES = ("perf/", "seconds", "tokens_per_s")  # parts of the names of what depends on the clock


@pytest.mark.parametrize("method", SAMPLING)
def test_killed_at_every_moment_of_a_phase(method: str, tiny_model: Path, tmp_path: Path) -> None:
    data, whole, killed = (tmp_path / name for name in ("data", "whole", "killed"))
    data.mkdir()
    run(method, tiny_model, whole, data)
    script = Path(__file__).parent / "killed_phases.py"
    for number in range(len(MOMENTS)):
        done = run_script(script, method, tiny_model, killed, data)
        assert done.returncode == -9, done.stderr[-3000:]
        assert [m for m in MOMENTS if (killed / f"killed: {m}").exists()] == list(MOMENTS[: number + 1])
    done = run_script(script, method, tiny_model, killed, data)
    assert done.returncode == 0, done.stderr[-3000:]
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
