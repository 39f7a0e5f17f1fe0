"""A batch in the rows of another layout: the same trees, and the same log-probs in the same places."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_posttrain import ModelSpec, Response, Tree
from lit_posttrain.data.store.packing import collate
from lit_posttrain.data.store.repack import repacked, unpacked
from lit_posttrain.models.loading import build_policy
from lit_posttrain.models.policy import Policy
from lit_posttrain.types import RowLayout

LAYOUTS = {
    "flat": RowLayout(flat=True),
    "shared": RowLayout(attention_cost=0.0, multiple=8),
    "shared, one group a row": RowLayout(attention_cost=0.0, packed=False),
    "unshared": RowLayout(shared=False),
    "unshared, one a row, with tails": RowLayout(shared=False, packed=False, tails=True),
}


def trees() -> list[Tree]:
    """One to four responses of unequal lengths; some prompts are trained on, and some tokens of responses are not."""
    random = np.random.default_rng(0)
    found = []
    for row in range(9):
        prompt = random.integers(3, 500, random.integers(2, 12)).astype(np.int32)
        said = []
        for _ in range(1 + row % 4):
            tokens = random.integers(3, 500, random.integers(1, 15)).astype(np.int32)
            said.append(Response(tokens, random.random(len(tokens)) < 0.7))
        found.append(Tree(prompt, said, random.random(len(prompt)) < 0.5 if row % 3 else None))
    found[4].responses[0].loss_mask[:] = False  # which trains nothing
    found.append(Tree(np.zeros(0, np.int32), [Response(np.arange(5, 12, dtype=np.int32), np.ones(7, np.bool_))]))
    return found


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> Policy:
    return build_policy(ModelSpec(str(tiny_model), dtype="float64"), 512).eval()


@pytest.mark.parametrize(("before", "after"), permutations(LAYOUTS, 2))
def test_log_probs_are_those_of_the_batch(before: str, after: str, policy: Policy) -> None:
    batch = collate(trees(), LAYOUTS[before], {})
    made, order = repacked(batch, LAYOUTS[after])
    assert made.input_ids.shape != batch.input_ids.shape, "other rows are the point"
    assert torch.equal(made.target_ids[order], batch.target_ids)
    with torch.no_grad():
        expected, found = policy(batch).logprobs, policy(made).logprobs
    assert len(expected) == sum(int(r.loss_mask.sum()) for tree in trees() for r in tree.responses) - 1 + sum(
        int(tree.prompt_loss_mask[1:].sum()) for tree in trees() if tree.prompt_loss_mask is not None
    )
    torch.testing.assert_close(found[order], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_trees_of_a_batch_come_back(layout: str) -> None:
    """As far as they are in it: all tokens of the prompt, and of a response up to the last one that is trained on."""
    for tree, found in zip(trees(), unpacked(collate(trees(), LAYOUTS[layout], {})), strict=True):
        assert np.array_equal(found.prompt, tree.prompt)
        for response, own in zip(tree.responses, found.responses, strict=True):
            size = len(own.tokens)
            assert np.array_equal(own.tokens, response.tokens[:size])
            trained = response.loss_mask if len(tree.prompt) else np.concatenate([[False], response.loss_mask[1:]])
            assert np.array_equal(own.loss_mask, trained[:size])
            assert not trained[size:].any()


def test_a_batch_without_trees_stays_one() -> None:
    made, order = repacked(collate([], RowLayout(), {}), RowLayout(shared=False, packed=False))
    assert made.num_trees == len(order) == 0
