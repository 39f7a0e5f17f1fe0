"""Numbers per trained token that a method brings along: for all rows alike, and one for each."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lit_posttrain.data.store.packing import collate
from lit_posttrain.errors import PostTrainError
from lit_posttrain.on_policy.experience import Experience
from lit_posttrain.types import Response, RowLayout, Tree


def tree(**columns: int) -> Tree:
    """Four trained tokens of six. columns: how many numbers each has."""
    mask = np.array([True, True, False, True, True, False])
    response = Response(np.arange(6, dtype=np.int32), mask)
    return Tree(
        np.array([7], np.int32),
        [response],
        file="p.jsonl",
        line=3,
        per_target={k: np.ones(n) for k, n in columns.items()},
    )


@pytest.mark.parametrize(
    ("trees", "told"),
    [
        ([tree(old=4), tree(old=6)], "p.jsonl:3: per_target['old'] has 6 numbers for 4 trained tokens"),
        ([tree(old=4), tree()], "p.jsonl:3: `per_target` of some rows has old, and of others it has not"),
        ([tree(), tree(old=4)], "p.jsonl:3: `per_target` of some rows has old, and of others it has not"),
    ],
)
def test_columns_that_do_not_fit_are_named(trees: list[Tree], told: str) -> None:
    with pytest.raises(PostTrainError, match=re.escape(told)):
        collate(trees, RowLayout(), {})
    with pytest.raises(PostTrainError, match=re.escape(told)):
        Experience(trees)


def test_columns_that_fit_are_taken() -> None:
    batch = collate([tree(old=4), tree(old=4)], RowLayout(), {})
    assert batch.per_target["old"].tolist() == [1.0] * 8
