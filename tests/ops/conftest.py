"""The divergence in parts so small that a test of a few rows has several of them."""

from __future__ import annotations

import pytest
from helpers.heads import V

from lit_posttrain.ops import divergence


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # float64: at most 5 rows at a time, in blocks of 2, the head in parts of at most 8 entries: none divides the whole
    monkeypatch.setattr(divergence, "_CPU_SIZES", (2 * 5 * V * 8, 2 * V * 8, 8))
