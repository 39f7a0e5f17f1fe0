"""A cached reference under several processes: everybody computes a part, and training ends as with one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.processes import run_script

HERE = Path(__file__).parent


def run(method: str, model: Path, folder: Path, strategy: str, devices: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    done = run_script(HERE / "cached_reference.py", method, model, folder, strategy, devices, devices=devices)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found: dict[str, torch.Tensor] = torch.load(folder / f"weights-{devices}.pt", weights_only=True)
    return found


@pytest.mark.parametrize(("method", "strategy"), [("kto", "ddp"), ("dpo", "fsdp2")])
def test_two_processes_fill_one_cache(method: str, strategy: str, tiny_model: Path, tmp_path: Path) -> None:
    alone = run(method, tiny_model, tmp_path / "one", "auto", 1)
    together = run(method, tiny_model, tmp_path / "two", strategy, 2)
    assert alone.keys() == together.keys()
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < 1e-6
