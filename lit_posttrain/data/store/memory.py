"""A few trees in memory, with the interface of a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_posttrain.data.audit.compared import ResponseColumns
from lit_posttrain.data.store.units import Longs, unit_columns
from lit_posttrain.types import Tree


class MemoryTrees:
    """A sequence of trees; its columns and units are those of `TreeStore`."""

    def __init__(self, trees: Sequence[Tree], fingerprint: str = "memory") -> None:
        self._trees, self.fingerprint = list(trees), fingerprint
        self.files = list(dict.fromkeys(tree.file for tree in trees))
        self.units = unit_columns(self)
        self.lines: Longs = np.array([tree.line for tree in trees], dtype=np.int64)
        self.file_index: Longs = np.array([self.files.index(tree.file) for tree in trees], dtype=np.int64)

    @property
    def lengths(self) -> Longs:
        """(n,) int64, tokens of the prompt and all responses."""
        return self.units["input_tokens"]

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> Tree:
        return self._trees[index]

    def says(self, label: str) -> bool:
        """True if a response has a label of this name that is not 0."""
        return any(abs(r.label(label)) > 0 for tree in self._trees for r in tree.responses)

    def responses(self) -> ResponseColumns:
        """All responses."""
        every = [response for tree in self._trees for response in tree.responses]
        return ResponseColumns(
            tree=np.repeat(np.arange(len(self._trees)), [len(tree.responses) for tree in self._trees]),
            size=np.array([len(response.tokens) for response in every], dtype=np.int64),
            labels={
                name: np.array([response.label(name) for response in every], dtype=np.float32)
                for name in {name for response in every for name in response.labels}
            },
        )

    def sources(self, rows: Sequence[int]) -> list[str]:
        """`file:line` of trees."""
        return [self._trees[row].source for row in rows]
