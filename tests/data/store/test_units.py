"""A unit that a loss is a mean over takes one entry in one table, wherever the rows come from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

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
from lit_posttrain.data.store.packing import collate
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.data.store.stream_loader import StreamLoader
from lit_posttrain.data.store.streaming import TreeStream
from lit_posttrain.data.store.units import UNITS
from lit_posttrain.types import Response, RowLayout, Tree

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


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda tree: 0.5, r"pairs.jsonl:1: the unit `own` counts 0\.5; let UNITS\['own'\] return a whole number"),
        (lambda tree: -1, "the unit `own` counts -1"),
        (lambda tree: float("nan"), "the unit `own` counts nan"),
        (lambda tree: None, "the unit `own` counts None"),
        (
            lambda tree: tree.nothing,
            r"the unit `own` fails at .*test_units.py:\d+: AttributeError: 'Tree' object has no",
        ),
    ],
)
def test_a_unit_that_is_no_count_is_named(
    function: Any, told: str, store: TreeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(UNITS, "own", function)
    with pytest.raises(PostTrainError, match=told):
        _ = store.units
    with pytest.raises(PostTrainError, match=told):
        collate([store[0]], RowLayout(), {})


def always(number: Any) -> Callable[[Tree], Any]:
    return lambda tree: number


def test_a_whole_number_of_any_type_is_a_count(store: TreeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (2.0, np.int64(2), np.float32(2)):
        monkeypatch.setitem(UNITS, f"own {type(number).__name__}", always(number))
    monkeypatch.setitem(UNITS, "first", lambda tree: tree.line == 1)
    units = store.units
    assert [units[name].tolist() for name in units if name.startswith("own")] == [[2] * ROWS] * 3
    assert units["first"].tolist() == [1] + [0] * (ROWS - 1)


def test_a_unit_of_the_package_cannot_be_replaced(store: TreeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UNITS, "tokens", long_responses)
    with pytest.raises(PostTrainError, match="a unit of the package and has been replaced or removed"):
        TreeStore(store.folder)


def test_a_label_that_is_no_number_is_absent() -> None:
    """From a method that writes NaN for none: the batch has no pair there, nor has the denominator."""
    responses = [
        Response(np.array([1], np.int32), np.ones(1, np.bool_), {"rank": rank, "good": good})
        for rank, good in ((0.0, np.nan), (np.nan, np.nan), (1.0, np.nan), (np.nan, 1.0))
    ]
    tree = Tree(np.array([5], np.int32), responses)
    batch = collate([tree], RowLayout(), {})
    assert UNITS["pairs"](tree) == len(batch.pairs.chosen) == 1
    assert UNITS["labelled"](tree) == int((~batch.desirable.isnan()).sum()) == 3
    tree.responses[0].labels["margin"] = math.nan
    assert not MemoryTrees([tree]).says("margin")
