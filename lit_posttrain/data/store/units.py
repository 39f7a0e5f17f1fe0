"""What the loss of an optimizer step is a mean over: a table of units, each a count of one tree.

Loaders sum them over a whole step (`TreeBatch.denominators`) and over a micro-batch (`TreeBatch.local_count`). A method
with a unit of its own adds it to `UNITS` where the method is defined:

    UNITS["long_responses"] = lambda tree: sum(len(response.tokens) > 100 for response in tree.responses)

A unit is a count, a whole number of at least 0. The units that are defined here cannot be replaced.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import raised_at, said_by
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
    ranks = [rank for response in tree.responses if not math.isnan(rank := response.label("rank"))]
    return _pairs(len(ranks)) - sum(map(_pairs, Counter(ranks).values()))


def labelled(tree: Tree) -> int:
    """Responses that are known to be good or bad: they have a label `good`, or are the best or the worst ones of a
    ranking. Those of which `TreeBatch.desirable` is a number."""
    ranks = [response.label("rank") for response in tree.responses]
    ends = {0.0, max((rank for rank in ranks if not math.isnan(rank)), default=0.0)}
    good = [response.label("good") for response in tree.responses]
    return sum(not math.isnan(one) or rank in ends for one, rank in zip(good, ranks, strict=True))


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
_BUILT_IN = dict(UNITS)


class IndexedTrees(Protocol):
    """A sequence of trees."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tree: ...


def built_in() -> list[str]:
    """The units that are defined here: what they count changes with the package's version alone, so that a store on
    disk keeps them.

    Raises:
        PostTrainError: one of them has been replaced.
    """
    replaced = next((name for name, function in _BUILT_IN.items() if UNITS.get(name) is not function), None)
    if replaced is not None:
        raise PostTrainError(
            f"UNITS[{replaced!r}] is a unit of the package and has been replaced or removed; give the new unit a name "
            "of its own"
        )
    return list(_BUILT_IN)


def count(unit: str, tree: Tree) -> int:
    """How many of a unit a tree has.

    Raises:
        PostTrainError: for a unit from outside the package whose function fails, or returns anything but a count.
    """
    function = UNITS[unit]
    if function is _BUILT_IN.get(unit):
        return function(tree)
    try:
        found: object = function(tree)
    except Exception as problem:  # whatever its code does
        told = f"{tree.source}: the unit `{unit}` fails at {raised_at(problem)}: {said_by(problem)}"
        raise PostTrainError(told) from problem
    number = float(found) if isinstance(found, (int, float, np.number, np.bool_)) else math.nan
    if not (number >= 0 and number.is_integer()):
        raise PostTrainError(
            f"{tree.source}: the unit `{unit}` counts {found!r}; let UNITS[{unit!r}] return a whole number of at least "
            "0"
        )
    return int(number)


def unit_columns(trees: IndexedTrees, known: Mapping[str, Longs] | None = None) -> dict[str, Longs]:
    """By unit (n,) the count of each tree. known: columns to use as they are; trees are read only for others.

    Raises:
        PostTrainError: as `count`.
    """
    columns = dict(known or {})
    missing = [name for name in UNITS if name not in columns]
    if missing:
        rows = [[count(name, tree) for name in missing] for tree in map(trees.__getitem__, range(len(trees)))]
        columns |= zip(missing, np.array(rows, dtype=np.int64).reshape(-1, len(missing)).T, strict=True)
    return {name: columns[name] for name in UNITS}


def _prompt_targets(tree: Tree) -> int:
    return 0 if tree.prompt_loss_mask is None else int(np.count_nonzero(tree.prompt_loss_mask[1:]))


def _targets(tree: Tree, response: Response) -> int:
    # where the prompt is empty, every response starts its own sequence
    return int(np.count_nonzero(response.loss_mask if len(tree.prompt) else response.loss_mask[1:]))


def _pairs(count: int) -> int:
    return count * (count - 1) // 2
