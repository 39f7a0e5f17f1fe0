"""Fifty steps of every method log what they always have: bitwise on the processor that wrote the files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from cases import METHODS
from golden import differences, machine, read, run

# of another processor's arithmetic: seen up to 5e-4, of an approx_kl of 1e-4
RELATIVE, ABSOLUTE = 5e-3, 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_fifty_steps_are_those_of_before(method: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = run(method, tiny_model, tmp_path)
    told, expected = read(method)
    if told == machine():
        assert differences(rows, expected) == {}
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for step, (mine, other) in enumerate(zip(rows, expected, strict=True)):
        for name, value in other.items():
            assert bool(mine[name]) == bool(value), (step, name)
            assert not value or math.isclose(float(mine[name]), float(value), rel_tol=RELATIVE, abs_tol=ABSOLUTE), (
                step,
                name,
                mine[name],
                value,
            )
