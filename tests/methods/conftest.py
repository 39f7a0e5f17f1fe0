"""A model to distil from."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tiny


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("teacher") / "llama", seed=7, hidden_size=32)
