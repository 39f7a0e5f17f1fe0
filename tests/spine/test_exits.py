"""However a run ends and at whatever moment: what goes on from it ends as the run that never ended, bitwise: weights,
optimizer, counters, metrics, best checkpoint, early stopping."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cases import GIVEN_ROWS, METHODS
from exits import EXITS, MOMENTS, SAMPLED_MOMENTS
from helpers.processes import run_script

FAST = {
    "sft": [
        "SIGTERM:last micro-batch",
        "SIGHUP:end of the epoch",
        "SIGKILL:validation",
        "SIGKILL:save",
        "SIGKILL:last validation",
        "exception:first micro-batch",
        "exception:optimizer step",
        "exception:after the step",
        "max_time:after the step",
    ],
    "sft averaged": ["exception:validation", "SIGTERM:last validation", "max_time:after the step"],
    "grpo": ["SIGINT:validation", "exception:reward", "exception:after the step"],
}


def outcomes(method: str, model: Path, root: Path, pairs: Sequence[str]) -> list[str]:
    """A line for every exit at every moment."""
    done = run_script(Path(__file__).with_name("exits.py"), method, model, root / method, *pairs, limit_s=7200)
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{method}, ")]
    assert len(lines) == len(pairs), done.stderr[-3000:]
    return lines


@pytest.mark.parametrize("method", FAST)
def test_exits(method: str, tiny_model: Path, tmp_path: Path) -> None:
    for line in outcomes(method, tiny_model, tmp_path, FAST[method]):
        assert line.endswith(": the same"), line


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "sft averaged", "grpo averaged"])
def test_every_exit_at_every_moment(method: str, tiny_model: Path, tmp_path: Path) -> None:
    moments = MOMENTS if method.split()[0] in GIVEN_ROWS else SAMPLED_MOMENTS
    lines = outcomes(method, tiny_model, tmp_path, [f"{how}:{moment}" for moment in moments for how in EXITS])
    print("\n".join(lines), file=sys.stderr)
    assert [line for line in lines if not line.endswith(": the same")] == []
