"""What the loss of an optimizer step is a mean over: a table of units, each a count of one tree.

Loaders sum them over a whole step (`TreeBatch.denominators`) and over a micro-batch (`TreeBatch.local_count`). A method
with a unit of its own adds it to `UNITS` where the method is defined:

    UNITS["long_responses"] = lambda tree: sum(len(response.tokens) > 100 for response in tree.responses)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.types import Response, Tree

Longs = NDArray[np.int64]


def tokens(tree: Tree) -> int:
    """Targets: trained tokens of responses and prompt, except the first one of a sequence, which nothing predicts."""
    return _prompt_targets(tree) + sum(_targets(tree, response) for response in tree.responses)


def input_tokens(tree: Tree) -> int:
    """All tokens of the prompt and its responses."""
    return len(tree.prompt) + sum(len(response.tokens) for response in tree.responses)


def pairs(tree: Tree) -> int:
    """Pairs of responses of unequal rank."""
    ranks = [response.labels["rank"] for response in tree.responses if "rank" in response.labels]
    return _pairs(len(ranks)) - sum(map(_pairs, Counter(ranks).values()))


def labelled(tree: Tree) -> int:
    """Responses that are known to be good or bad: they have a label `good`, or are the best or the worst ones of a
    ranking. Those of which `TreeBatch.desirable` is a number."""
    ranks = [response.label("rank") for response in tree.responses]
    ends = {0.0, max((rank for rank in ranks if rank == rank), default=0.0)}
    return sum("good" in r.labels or rank in ends for r, rank in zip(tree.responses, ranks, strict=True))


def chosen_tokens(tree: Tree) -> int:
    """Trained tokens of the best responses (rank 0) and of the prompt."""
    best = [response for response in tree.responses if response.label("rank") == 0]
    return _prompt_targets(tree) + sum(_targets(tree, response) for response in best)


UNITS: dict[str, Callable[[Tree], int]] = {
    "tokens": tokens,
    "input_tokens": input_tokens,
    "responses": lambda tree: len(tree.responses),
    "pairs": pairs,
    "labelled": labelled,
    "chosen_tokens": chosen_tokens,
    "trees": lambda tree: 1,
}


class IndexedTrees(Protocol):
    """Trees by their places."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tree: ...


def built_in() -> list[str]:
    """Units of this table that are defined here: what they count changes with the package's version alone, so that a
    store on disk keeps them."""
    return [name for name, count in UNITS.items() if count.__module__ == __name__]


def unit_columns(trees: IndexedTrees, known: Mapping[str, Longs] | None = None) -> dict[str, Longs]:
    """By unit (n,), how many each tree has; columns that are `known` are taken, the trees are read for others."""
    columns = dict(known or {})
    missing = [name for name in UNITS if name not in columns]
    if missing:
        rows = [[UNITS[name](tree) for name in missing] for tree in map(trees.__getitem__, range(len(trees)))]
        columns |= zip(missing, np.array(rows, dtype=np.int64).reshape(-1, len(missing)).T, strict=True)
    return {name: columns[name] for name in UNITS}


def _prompt_targets(tree: Tree) -> int:
    return 0 if tree.prompt_loss_mask is None else int(np.count_nonzero(tree.prompt_loss_mask[1:]))


def _targets(tree: Tree, response: Response) -> int:
    # where the prompt is empty, every response starts its own sequence
    return int(np.count_nonzero(response.loss_mask if len(tree.prompt) else response.loss_mask[1:]))


def _pairs(count: int) -> int:
    return count * (count - 1) // 2
