"""Fixtures shared by all tests; each restores what it changed."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's library is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tiny random Llama."""
    return tiny.save_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by LIT_POSTTRAIN_DATA; tests that need it are skipped without."""
    folder = os.environ.get("LIT_POSTTRAIN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LIT_POSTTRAIN_DATA does not name a folder with the real data sets")
    return Path(folder).resolve()


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Lightning leaves MASTER_ADDR, LOCAL_RANK and the like behind, by which later tests would take themselves for one
    of several processes."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _same_torch_state() -> Iterator[None]:
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
