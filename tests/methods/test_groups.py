"""How the groups of a rollout become micro-batches: whole where a method compares the responses to a prompt."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_posttrain import PostTrainError, Response, RolloutConfig, Tree, TreeBatch
from lit_posttrain.data.store.loader import StepCutter
from lit_posttrain.on_policy.experience import Experience, ExperienceLoader
from lit_posttrain.types import RowLayout

GROUP, PARTS = 4, 3


def rollout(prompts: int) -> Experience:
    random = np.random.default_rng(0)
    trees = []
    for row in range(prompts):
        said = [
            Response(random.integers(3, 90, 5).astype(np.int32), np.ones(5, np.bool_), {"rank": float(k)})
            for k in range(GROUP)
        ]
        trees.append(Tree(np.full(3, row + 3, np.int32), said, file="a.jsonl", line=row))
    return Experience(trees)


def micro_batches(prompts: int, splits_groups: bool, has_gradient: Any = lambda tree: True) -> list[TreeBatch]:
    stream: Any = SimpleNamespace(store=SimpleNamespace(fingerprint="", files=[]), seed=0)
    loader = ExperienceLoader(
        stream,
        lambda number: rollout(prompts),
        StepCutter(PARTS, 1, 0, RowLayout()),
        batch_size=prompts,
        inner_epochs=1,
        minibatches=1,
        identity={},
        has_gradient=has_gradient,
        splits_groups=splits_groups,
    )
    return list(loader)


@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_groups_stay_whole(prompts: int) -> None:
    batches = micro_batches(prompts, splits_groups=False)
    assert len(batches) == PARTS
    assert sum(batch.num_trees for batch in batches) == prompts
    for batch in batches:
        assert batch.response_tree.bincount().tolist() == [GROUP] * batch.num_trees
        assert len(batch.pairs.chosen) == batch.num_trees * GROUP * (GROUP - 1) // 2
        assert batch.denominators["pairs"] == prompts * GROUP * (GROUP - 1) // 2


def test_groups_are_split_where_no_loss_compares() -> None:
    batches = micro_batches(1, splits_groups=True)
    assert sorted(batch.num_responses for batch in batches) == [1, 1, 2]
    whole = micro_batches(1, splits_groups=False)
    assert sorted(batch.num_responses for batch in whole) == [0, 0, GROUP]


def test_what_has_no_gradient_leaves_the_others_whole() -> None:
    """And stays in the denominators."""
    batches = micro_batches(4, splits_groups=False, has_gradient=lambda tree: tree.line == 2)
    assert sorted(batch.num_responses for batch in batches) == [0, 0, GROUP]
    assert {batch.denominators["responses"] for batch in batches} == {4.0 * GROUP}


def test_micro_batches_are_counted_by_prompts_where_groups_stay_whole() -> None:
    config = RolloutConfig(group_size=GROUP)
    config.check_cut(2, 3, splits_groups=True)
    config.check_cut(3, 3, splits_groups=False)
    with pytest.raises(PostTrainError, match="a step has 2 prompts for 3 micro-batches"):
        config.check_cut(2, 3, splits_groups=False)
    with pytest.raises(PostTrainError, match="a step has 1 prompt x 4 responses for 5 micro-batches"):
        config.check_cut(1, 5, splits_groups=True)
