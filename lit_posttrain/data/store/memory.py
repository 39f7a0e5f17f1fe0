"""A few trees in memory, with what loaders and methods ask of a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_posttrain.data.audit.compared import ResponseColumns
from lit_posttrain.data.store.store import MEASURES, Longs, measures
from lit_posttrain.types import Tree


class MemoryTrees:
    """A sequence of trees; its columns are those of `TreeStore`."""

    def __init__(self, trees: Sequence[Tree], fingerprint: str = "memory") -> None:
        self._trees, self.fingerprint = list(trees), fingerprint
        self.files = list(dict.fromkeys(tree.file for tree in trees))
        rows = np.array([measures(tree) for tree in trees], dtype=np.int64).reshape(-1, len(MEASURES))
        columns: dict[str, Longs] = dict(zip(MEASURES, rows.T, strict=True))
        self.lengths, self.num_responses = columns["lengths"], columns["num_responses"]
        self.trained_tokens, self.chosen_tokens = columns["trained_tokens"], columns["chosen_tokens"]
        self.num_pairs, self.num_labelled = columns["num_pairs"], columns["num_labelled"]
        self.lines: Longs = np.array([tree.line for tree in trees], dtype=np.int64)
        self.file_index: Longs = np.array([self.files.index(tree.file) for tree in trees], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> Tree:
        return self._trees[index]

    def says(self, label: str) -> bool:
        """True if a response has a label of this name that is not 0."""
        return any(r.labels.get(label, 0.0) != 0 for tree in self._trees for r in tree.responses)

    def responses(self) -> ResponseColumns:
        """All responses."""
        every = [response for tree in self._trees for response in tree.responses]
        return ResponseColumns(
            tree=np.repeat(np.arange(len(self._trees)), self.num_responses),
            size=np.array([len(response.tokens) for response in every], dtype=np.int64),
            labels={
                name: np.array([response.label(name) for response in every], dtype=np.float32)
                for name in {name for response in every for name in response.labels}
            },
        )

    def sources(self, rows: Sequence[int]) -> list[str]:
        """`file:line` of trees."""
        return [self._trees[row].source for row in rows]
