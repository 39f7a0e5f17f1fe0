"""Two processes, whose responses are of other lengths, go through two phases together, sharded or not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cases import SAMPLING, teacher_of
from helpers.processes import run_script


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_phases_in_two_processes(strategy: str, tiny_model: Path, tmp_path: Path) -> None:
    teacher_of(tiny_model)
    done = run_script(Path(__file__).parent / "phases_sharded.py", tiny_model, tmp_path, strategy, devices=2)
    for method in SAMPLING:
        for rank in range(2):
            problem = tmp_path / f"{method}-{rank}.txt"
            assert not problem.exists(), problem.read_text()
        files = [tmp_path / f"{method}-{rank}.pt" for rank in range(2)]
        assert all(file.exists() for file in files), done.stderr[-3000:]
        first, second = (torch.load(file, weights_only=True) for file in files)
        assert first["step"] == second["step"] == 8
        assert first["lengths"] == second["lengths"], "every rank has the responses of both"
        assert all(len(phase) == 24 and len(set(phase)) > 3 for phase in first["lengths"])
        assert first["lengths"][0] != first["lengths"][1]
        assert all(math.isfinite(loss) for loss in first["losses"] + second["losses"])
        assert first["val"] == second["val"]
