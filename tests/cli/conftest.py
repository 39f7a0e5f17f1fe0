"""A folder to run commands in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_posttrain.cli.options import option_tree


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file of conversations in an empty working directory, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    option_tree()  # as every command leaves it for the next: these are checked as in a process of their own
    monkeypatch.delenv("LIT_POSTTRAIN_RUN", raising=False)
    rows = [{"prompt": f"what is {i} plus {i}", "completion": f"{i} plus {i} equals {2 * i}"} for i in range(24)]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file
