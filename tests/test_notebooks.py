"""Every notebook runs from top to bottom, on a tiny model and for a few steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# the kernel is one for all notebooks, which imports once: each begins without names, in a folder of its own
BEGIN = """
%reset -f
import os
os.chdir({folder})
os.environ.update({environment})
%reset -f
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    manager = KernelManager(kernel_name="python3")
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, kernel: KernelManager, tiny_model: Path, tmp_path: Path) -> None:
    environment = {
        "LIT_POSTTRAIN_MODEL": str(tiny_model),
        "LIT_POSTTRAIN_RUN_DIR": str(tmp_path / "run"),
        "LIT_POSTTRAIN_STEPS": "3",
        "LIT_POSTTRAIN_CACHE": str(tmp_path / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    content = nbformat.read(notebook, as_version=4)
    assert all(not cell.get("outputs") for cell in content.cells), "outputs are not committed"
    begin = BEGIN.format(folder=json.dumps(str(tmp_path)), environment=json.dumps(environment))
    content.cells.insert(0, nbformat.v4.new_code_cell(begin))
    NotebookClient(content, km=kernel, timeout=300).execute()
