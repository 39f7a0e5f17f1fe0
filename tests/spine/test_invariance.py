"""The same rows cut into other micro-batches, accumulation steps or ranks give the same gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import METHODS
from gradients import CLIP, one_step
from helpers.processes import run_script

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
HERE = Path(__file__).parent


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3, "a gradient of zeros would prove nothing"
    worst = max(float((actual[name] - expected[name]).abs().max()) for name in expected)
    assert worst <= tolerance, f"gradients differ by {worst}"
    clipped = torch.stack([g.norm() for name, g in actual.items() if name.startswith("clipped:")]).norm()
    assert float(clipped) == pytest.approx(CLIP, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_does_not_change_the_gradient(method: str, dtype: str, tiny_model: Path) -> None:
    whole = one_step(method, tiny_model, dtype, accumulate=1)
    parts = one_step(method, tiny_model, dtype, accumulate=16)
    assert_same(parts, whole, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("method", METHODS)
def test_processes_do_not_change_the_gradient(
    method: str, strategy: str, dtype: str, tiny_model: Path, tmp_path: Path
) -> None:
    whole = one_step(method, tiny_model, dtype, accumulate=1)
    out = tmp_path / "gradients.pt"
    done = run_script(HERE / "gradients.py", method, tiny_model, dtype, 4, strategy, 2, out)
    assert out.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    assert_same(torch.load(out, weights_only=True), whole, TOLERANCE[dtype])
