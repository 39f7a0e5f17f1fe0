"""A unit that a loss is a mean over takes one entry in one table, wherever the rows come from."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny

from lit_posttrain import PostTrainError, Term, loss_of
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.store.build import build_store
from lit_posttrain.data.store.loader import EvalLoader, StepLoader
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.data.store.stream_loader import StreamLoader
from lit_posttrain.data.store.streaming import TreeStream
from lit_posttrain.data.store.units import UNITS
from lit_posttrain.types import Tree

ROWS = 12


@pytest.fixture
def file(tmp_path: Path) -> str:
    rows = [{"prompt": f"say {i}", "chosen": "a fox " * (1 + i), "rejected": "a dog"} for i in range(ROWS)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def store(file: str, tmp_path: Path) -> TreeStore:
    """Written before the unit is in the table."""
    return build_store([file], tiny.tokenizer(), PreferenceOptions(), str(tmp_path / "cache"))[0]


def long_responses(tree: Tree) -> int:
    return sum(len(response.tokens) > 20 for response in tree.responses)


def expected(trees: list[Tree]) -> int:
    found = sum(map(long_responses, trees))
    assert 2 < found < ROWS, "or the test would tell little"
    return found


def test_one_entry_is_a_denominator_of_stores_streams_and_memory(
    store: TreeStore, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(UNITS, "long_responses", long_responses)
    count = expected([store[i] for i in range(ROWS)])
    memory = MemoryTrees([store[i] for i in range(ROWS)])
    reopened = TreeStore(store.folder)
    stream = TreeStream(
        find_sources(file, streaming=True), tiny.tokenizer(), PreferenceOptions(), shuffle=False, buffer=1, seed=0
    )
    stores = (store, reopened, memory)
    loaders: list[StepLoader | StreamLoader] = [StepLoader(trees, batch_size=ROWS, accumulate=3) for trees in stores]
    loaders.append(StreamLoader(stream, batch_size=ROWS, steps=1, accumulate=3))
    for loader in loaders:
        step = list(islice(loader, 3))
        assert [batch.denominators["long_responses"] for batch in step] == [count] * 3
        assert sum(batch.local_count("long_responses") for batch in step) == count
    (batch,) = EvalLoader(store, batch_size=ROWS)
    assert batch.denominators == {unit: batch.local_count(unit) for unit in UNITS}
    view = store.select([11, 0])
    assert view.units["long_responses"].tolist() == [1, 0]
    assert not np.isnan(loss_of({"own": Term(torch.ones(()), "long_responses")}, batch.denominators))


def test_a_store_keeps_its_own_units_on_disk(store: TreeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(self: TreeStore, index: int) -> Tree:
        raise AssertionError("no tree is read to plan steps")

    monkeypatch.setattr(TreeStore, "__getitem__", unread)
    assert TreeStore(store.folder).units["pairs"].tolist() == [1] * ROWS


def test_a_unit_that_nobody_counts_is_an_error() -> None:
    message = r"divided by `words`, which is none of tokens, input_tokens, .*: add a function .* UNITS of lit_posttrain"
    with pytest.raises(PostTrainError, match=message):
        Term(torch.ones(()), "words")
