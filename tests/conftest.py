"""Fixtures shared by all tests; each restores what it changed."""

from __future__ import annotations

import os
import signal
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's library is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked process would wait for its threads without end

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.store.units import UNITS

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as in background jobs of a shell, which tests that send it are not
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # by --trainer.deterministic
        torch.use_deterministic_algorithms(deterministic)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _same_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands import modules of the folder that they run in, which may add a unit: a later test may have others of the
    same name."""
    before, path, units = set(sys.modules), list(sys.path), dict(UNITS)
    yield
    sys.path[:] = path
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        about = vars(sys.modules[name])
        if any(place.startswith(folder) for place in (about.get("__file__") or "", *about.get("__path__", ()))):
            del sys.modules[name]
    UNITS.clear()
    UNITS.update(units)
