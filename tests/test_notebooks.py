"""Every notebook runs from top to bottom, on a tiny model and for a few steps."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_POSTTRAIN_MODEL", str(tiny_model))
    monkeypatch.setenv("LIT_POSTTRAIN_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("LIT_POSTTRAIN_STEPS", "3")
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    content = nbformat.read(notebook, as_version=4)
    assert all(not cell.get("outputs") for cell in content.cells), "outputs are not committed"
    NotebookClient(content, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
