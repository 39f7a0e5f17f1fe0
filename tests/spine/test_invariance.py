"""The same rows cut into other micro-batches, accumulation steps or ranks give the same gradient."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from cases import METHODS, teacher_of
from gradients import CLIP, DTYPES, one_step
from helpers.processes import run_script

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
HERE = Path(__file__).parent


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3, "a gradient of zeros would prove nothing"
    worst = max(float((actual[name] - expected[name]).abs().max()) for name in expected)
    assert worst <= tolerance, f"gradients differ by {worst}"
    clipped = torch.stack([g.norm() for name, g in actual.items() if name.startswith("clipped:")]).norm()
    assert float(clipped) == pytest.approx(CLIP, rel=1e-3)


@cache
def whole(method: str, model: Path, dtype: str) -> dict[str, torch.Tensor]:
    """The gradient of all rows at once, with which all others are compared."""
    return one_step(method, model, dtype, accumulate=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_does_not_change_the_gradient(method: str, dtype: str, tiny_model: Path) -> None:
    parts = one_step(method, tiny_model, dtype, accumulate=16)
    assert_same(parts, whole(method, tiny_model, dtype), TOLERANCE[dtype])


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two_processes(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the gradients of every method, METHOD-DTYPE.pt: starting processes takes longer than a step."""
    folder = tmp_path_factory.mktemp(request.param)
    teacher_of(tiny_model)
    done = run_script(HERE / "gradients.py", tiny_model, 4, request.param, 2, folder, devices=2)
    (folder / "said.txt").write_text(done.stdout[-3000:] + done.stderr[-3000:])
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_processes_do_not_change_the_gradient(method: str, dtype: str, two_processes: Path, tiny_model: Path) -> None:
    found, problem = (two_processes / f"{method}-{dtype}.{kind}" for kind in ("pt", "txt"))
    assert not problem.exists(), problem.read_text()
    assert found.exists(), (two_processes / "said.txt").read_text()
    assert_same(torch.load(found, weights_only=True), whole(method, tiny_model, dtype), TOLERANCE[dtype])
