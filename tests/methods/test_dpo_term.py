"""DPO's loss without DPO: of responses whose ranks a method writes itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lit_posttrain import PostTrainError, Response, Tree, loss_of
from lit_posttrain.core.dpo import DPOLoss, dpo_term, summed_ratios
from lit_posttrain.data.store.loader import step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate
from lit_posttrain.types import RowLayout, TreeBatch

BETA = 0.5
SIZES = [3, 2, 5, 4]  # tokens of the responses to a prompt; the first one is the best, the third one the worst
EXPECTED: dict[DPOLoss, Callable[[float, float], float]] = {
    "sigmoid": lambda w, r: math.log1p(math.exp(-BETA * (w - r))),
    "conservative": lambda w, r: (
        0.9 * math.log1p(math.exp(-BETA * (w - r))) + 0.1 * math.log1p(math.exp(BETA * (w - r)))
    ),
    "hinge": lambda w, r: max(0.0, 1 - BETA * (w - r)),
    "ipo": lambda w, r: (w / SIZES[0] - r / SIZES[2] - 1 / (2 * BETA)) ** 2,
}


def sampled(ranks: list[float | None]) -> TreeBatch:
    """Two prompts with four responses each, of which only some are ranked."""
    said = [Response(np.arange(size, dtype=np.int32), np.ones(size, np.bool_)) for size in SIZES]
    trees = []
    for prompt in ([7, 8], [9]):
        labelled = [
            Response(r.tokens, r.loss_mask, {"reward": 0.1} | ({} if rank is None else {"rank": rank}))
            for r, rank in zip(said, ranks, strict=True)
        ]
        trees.append(Tree(np.array(prompt, np.int32), labelled))
    return collate(trees, RowLayout(), step_denominators(MemoryTrees(trees), range(2)))


@pytest.mark.parametrize("loss", EXPECTED)
def test_best_against_worst(loss: DPOLoss) -> None:
    batch = sampled([0.0, None, 1.0, None])
    ratios = torch.linspace(-1.0, 1.0, len(batch.target_ids), dtype=torch.float64)
    total = batch.sum(ratios).tolist()
    smoothing = 0.1 if loss == "conservative" else 0.0
    term = dpo_term(batch, summed_ratios(batch, ratios, batch.pairs), batch.pairs, loss, BETA, smoothing)
    expected = [EXPECTED[loss](total[first], total[first + 2]) for first in (0, 4)]
    assert batch.denominators["pairs"] == 2
    assert float(loss_of({"preference": term}, batch.denominators)) == pytest.approx(sum(expected) / 2)


def test_tokens_beyond_the_shorter_response_of_a_pair_weigh_less() -> None:
    batch = sampled([0.0, None, 1.0, None])
    ratios = torch.ones(len(batch.target_ids), dtype=torch.float64)
    with pytest.raises(PostTrainError, match="compares two responses to a prompt"):
        summed_ratios(batch, ratios, batch.pairs, 0.25)
    trees = [Tree(np.array([7], np.int32), [_response(3, 0.0), _response(5, 1.0)])]
    pair = collate(trees, RowLayout(), {})
    found = summed_ratios(pair, torch.ones(8), pair.pairs, 0.25)
    assert found.tolist() == [3.0, 3.5]


def _response(size: int, rank: float) -> Response:
    return Response(np.arange(size, dtype=np.int32), np.ones(size, np.bool_), {"rank": rank})
