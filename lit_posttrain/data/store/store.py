"""Trees on disk: flat arrays, memory-mapped, in a folder that appears whole or not at all.

A folder holds `tokens.bin` (int32) and `loss_mask.bin` (bool) of all segments one after another, where the segments of
a tree are its prompt and then its responses; `segments.npz` and `trees.npz` with one entry per segment and per tree;
and `store.json`. Where trees have records, `records.bin` holds them one after another, as UTF-8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.store.logprob_cache import TargetValues
from lit_posttrain.data.store.units import UNITS, Longs, built_in, unit_columns
from lit_posttrain.types import Response, Tree

# per tree, in the order in which `append` fills them; units have columns of their own
TREE_COLUMNS = (
    "first_segment",
    "prompt_lengths",
    "longest_branch",
    "num_responses",
    "prompt_loss_mask",
    "file_index",
    "lines",
    "record_start",
    "record_end",
)


class TreeStore:
    """A read-only sequence of trees.

    prompt_lengths (n,). longest_branch (n,): tokens of the prompt and the longest response. num_responses (n,).
    file_index (n,) into `files`, lines (n,): where the record stands. All int64. row_hash (n,) uint64: hash of the
    record's content, the same in every file. fingerprint: hash of the trees and their order. identity, num_targets:
    hash and number of targets of all trees of the folder. first_target (n,): place of a tree's first target among them.
    reference: one number per target of the folder, for `Tree.per_target["ref_logprobs"]`; None for none.
    """

    def __init__(self, folder: Path | str, files: Sequence[str] | None = None) -> None:
        """Open a folder. files: names to use instead of those in it, since files of the same content share a cache."""
        self.folder = Path(folder)
        about = json.loads((self.folder / "store.json").read_text())
        self.files: list[str] = list(files if files is not None else about["files"])
        self.fingerprint: str = about["fingerprint"]
        self.identity = self.fingerprint
        self.reference: TargetValues | None = None
        self._tokens = _map(self.folder / "tokens.bin", np.dtype(np.int32))
        self._loss_mask = _map(self.folder / "loss_mask.bin", np.dtype(np.bool_))
        self._records = _map(self.folder / "records.bin", np.dtype(np.uint8))
        with np.load(self.folder / "segments.npz") as segments:
            self._offsets = segments["offsets"]
            names: list[str] = segments["label_names"].tolist()
            self._labels: dict[str, NDArray[np.float32]] = dict(zip(names, segments["labels"], strict=True))
        with np.load(self.folder / "trees.npz") as trees:
            columns = {name: trees[name] for name in (*TREE_COLUMNS, "row_hash")}
            units = {name: trees[name] for name in built_in() if name in trees.files}
        ends = np.cumsum(units["tokens"])
        self.num_targets = int(ends[-1]) if len(ends) else 0
        columns["first_target"] = ends - units["tokens"]
        self._take(columns, units)

    def _take(self, columns: Mapping[str, NDArray[Any]], units: Mapping[str, Longs]) -> None:
        self._columns, self._units = dict(columns), dict(units)
        self._first_segment: Longs = columns["first_segment"]
        self._prompt_loss_mask: Longs = columns["prompt_loss_mask"]
        self.prompt_lengths: Longs = columns["prompt_lengths"]
        self.longest_branch: Longs = columns["longest_branch"]
        self.num_responses: Longs = columns["num_responses"]
        self.file_index: Longs = columns["file_index"]
        self.lines: Longs = columns["lines"]
        self.first_target: Longs = columns["first_target"]
        self._record_start: Longs = columns["record_start"]
        self._record_end: Longs = columns["record_end"]
        self.row_hash: NDArray[np.uint64] = columns["row_hash"]

    @property
    def units(self) -> Mapping[str, Longs]:
        """By unit (n,) int64, how many each tree has, see `UNITS`. A unit that is not on disk is counted now."""
        if self._units.keys() != UNITS.keys():
            self._units = unit_columns(self, self._units)
        return self._units

    @property
    def lengths(self) -> Longs:
        """(n,) int64, tokens of the prompt and all responses."""
        return self._units["input_tokens"]

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __iter__(self) -> Iterator[Tree]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tree:
        if not -len(self) <= index < len(self):
            raise IndexError(f"tree {index} of {len(self)}")
        first, count = int(self._first_segment[index]), int(self.num_responses[index])
        ends = self._offsets[first : first + count + 2].tolist()
        # copies: a batch must not keep a page of the file alive, nor be read-only
        tokens = np.array(self._tokens[ends[0] : ends[-1]])
        loss_mask = np.array(self._loss_mask[ends[0] : ends[-1]])
        cuts = [slice(a - ends[0], b - ends[0]) for a, b in pairwise(ends)]
        responses = [
            Response(tokens[cut], loss_mask[cut], self._labels_of(segment))
            for segment, cut in enumerate(cuts[1:], first + 1)
        ]
        return Tree(
            prompt=tokens[cuts[0]],
            responses=responses,
            prompt_loss_mask=loss_mask[cuts[0]] if self._prompt_loss_mask[index] else None,
            file=self.files[int(self.file_index[index])],
            line=int(self.lines[index]),
            record=bytes(self._records[int(self._record_start[index]) : int(self._record_end[index])]).decode(),
            per_target={} if self.reference is None else {"ref_logprobs": self._values(self.reference, index)},
        )

    def _values(self, of_targets: TargetValues, index: int) -> NDArray[Any]:
        start = int(self.first_target[index])
        return np.array(of_targets[start : start + int(self._units["tokens"][index])])

    def whole(self) -> TreeStore:
        """All trees of the folder."""
        return TreeStore(self.folder, self.files)

    def _labels_of(self, segment: int) -> dict[str, float]:
        return {name: float(v[segment]) for name, v in self._labels.items() if v[segment] == v[segment]}

    def says(self, label: str) -> bool:
        """True if a response of the folder has a label of this name that is not 0."""
        return label in self._labels and bool(np.nan_to_num(self._labels[label]).any())

    def sources(self, rows: Sequence[int]) -> list[str]:
        """`file:line` of trees."""
        return [f"{self.files[int(self.file_index[row])]}:{int(self.lines[row])}" for row in rows]

    def select(self, indices: Sequence[int] | Longs) -> TreeStore:
        """A view of some trees, in the order given; no token is copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        columns, units = ({name: v[chosen] for name, v in kept.items()} for kept in (self._columns, self._units))
        view._take(columns, units)
        view.fingerprint = hashlib.blake2b(self.fingerprint.encode() + chosen.tobytes(), digest_size=16).hexdigest()
        return view


def _map(file: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    # an empty file cannot be mapped
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype)
