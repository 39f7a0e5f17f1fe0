"""A tiny run of the command line, in a folder of its own."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from helpers.trainer import ROOT

from lit_posttrain.cli.main import main

Fit = Callable[..., int]


@pytest.fixture
def fit(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """`lit-posttrain fit` of 16 rows in steps of 4, named `r`: 4 steps an epoch and 8 rows to validate on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIT_POSTTRAIN_RUN", raising=False)
    rows = [{"prompt": f"what is {i} plus {i}", "completion": f"{i} plus {i} equals {2 * i}"} for i in range(24)]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--config", str(ROOT / "configs/sft.yaml"), "--data.path", "chats.jsonl", "--data.val_fraction", "0.3"]
    common += ["--data.batch_size", "4", "--model.policy.path", str(tiny_model), "--wandb.mode", "disabled"]
    common += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--name", "r"]

    def run(*extra: str) -> int:
        os.environ.pop("LIT_POSTTRAIN_RUN", None)
        return main(["fit", *common, *extra])

    return run


@pytest.fixture
def lightning_says() -> Iterator[Callable[[], str]]:
    """What Lightning's logger lets through; it has a handler of its own."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    yield stream.getvalue
    logger.removeHandler(handler)
