"""The tree mask against a loop over every pair of positions."""

from __future__ import annotations

import pytest
import torch

from lit_posttrain.ops.attention import additive, tree_mask


@pytest.mark.parametrize("window", [None, 3])
def test_mask_equals_a_loop(window: int | None) -> None:
    # two trees (2-token trunk with branches of 2 and 3; 1-token trunk with one branch), then padding
    trees = torch.tensor([[5, 5, 5, 5, 5, 5, 5, 8, 8, 8, -1, -1]])
    branches = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 0, 1, 1, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 3, 2, 3, 4, 0, 1, 2, 0, 0]])
    mask = tree_mask(trees, branches, positions, window)
    assert mask.shape == (1, 1, 12, 12)
    for q in range(12):
        for k in range(12):
            visible = (
                k <= q
                and trees[0, k] == trees[0, q] != -1
                and branches[0, k] in (0, branches[0, q])
                and (window is None or positions[0, q] - positions[0, k] < window)
            ) or k == q
            assert bool(mask[0, 0, q, k]) == bool(visible), (q, k)


def test_additive_mask_is_finite_and_zero_where_visible() -> None:
    mask = torch.tensor([[True, False]])
    numbers = additive(mask, torch.bfloat16)
    assert numbers.tolist()[0][0] == 0
    assert torch.isfinite(numbers).all()
    assert numbers[0, 1] == torch.finfo(torch.bfloat16).min
