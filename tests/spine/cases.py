"""The methods that every spine test runs through. A new method joins by a line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_posttrain import SFT, ModelSpec, PostTrainingModule, Response, Tree


@dataclass
class Case:
    """How to build a method on a model folder, and the rows that it trains on."""

    build: Callable[[ModelSpec], PostTrainingModule]
    trees: Callable[[], list[Tree]]


class ListStore:
    """Trees in a list, with what loaders ask of a store."""

    def __init__(self, trees: list[Tree]) -> None:
        self.trees = trees
        self.fingerprint = "list"
        self.lengths = _array(trees, lambda t: len(t.prompt) + sum(len(r.tokens) for r in t.responses))
        self.counted_tokens = _array(trees, lambda t: sum(int(r.counted.sum()) for r in t.responses))
        self.num_responses = _array(trees, lambda t: len(t.responses))

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> Tree:
        return self.trees[index]


def _array(trees: list[Tree], size: Callable[[Tree], int]) -> NDArray[np.int64]:
    return np.array([size(t) for t in trees], dtype=np.int64)


def conversations(rows: int = 64, seed: int = 0) -> list[Tree]:
    """Random single-response trees of very unequal lengths."""
    random = np.random.default_rng(seed)
    trees = []
    for _ in range(rows):
        prompt = random.integers(3, 500, random.integers(2, 30)).astype(np.int32)
        tokens = random.integers(3, 500, random.integers(1, 40)).astype(np.int32)
        counted = random.random(len(tokens)) < 0.8
        counted[-1] = True
        trees.append(Tree(prompt, [Response(tokens, counted)]))
    return trees


METHODS: dict[str, Case] = {
    "sft": Case(lambda spec: SFT(spec, warmup=0.0, schedule="constant"), conversations),
}


def build(method: str, folder: Path, **changes: object) -> PostTrainingModule:
    """A method on a model folder."""
    return METHODS[method].build(replace(ModelSpec(str(folder)), **changes))  # type: ignore[arg-type]  # test options
