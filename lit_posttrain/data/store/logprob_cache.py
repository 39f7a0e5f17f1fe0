"""Log-probabilities of a data set's targets on disk: one float32 each, filled once and shared by later runs.

A folder holds `values.f32`, NaN where nothing has been computed yet, `about.json` that says what it belongs to, and
`done`, the number of rows from the first on that are finished: a pass that was interrupted goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.atomic import whole_folder, write_text
from lit_posttrain.types import Tree

_CHUNK = 1 << 20


class TargetValues(Protocol):
    """One number per target of a file, such as an array."""

    def __getitem__(self, places: slice, /) -> ArrayLike: ...


@runtime_checkable
class TargetTrees(Protocol):
    """Trees whose targets have positions in a file.

    reference: the values attached to trees as `Tree.per_target["ref_logprobs"]`, one number per target; None for none.
    identity: hash of all trees of the file. num_targets: how many targets the file has.
    """

    reference: TargetValues | None

    @property
    def identity(self) -> str: ...
    @property
    def num_targets(self) -> int: ...
    def whole(self) -> TargetTrees:
        """The trees of the whole file, in its order; these may be a part of them."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tree: ...


class FilePositions:
    """A virtual arange: as `reference` while the cache is filled, it gives each batch the positions of its targets in
    the file."""

    def __getitem__(self, cut: slice) -> NDArray[np.float64]:
        return np.arange(cut.start, cut.stop, dtype=np.float64)


class LogprobCache:
    """The file of one data set under one model."""

    def __init__(self, root: Path, size: int, about: Mapping[str, str], create: bool = True) -> None:
        """Open the folder of `about` under `root`, or make it.

        size: number of targets. about: what the values depend on, by name.

        Raises:
            PostTrainError: for a folder that was made for something else, or is damaged.
        """
        wanted = {**about, "targets": str(size)}
        key = hashlib.blake2b(json.dumps(wanted, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.folder = root / key
        if create and not self.folder.is_dir():
            self._make(size, wanted)
        try:
            found: dict[str, str] = json.loads((self.folder / "about.json").read_text())
            whole = (self.folder / "values.f32").stat().st_size == 4 * max(size, 1)
        except (OSError, ValueError) as problem:
            raise PostTrainError(f"{self.folder}: no reference cache ({problem}); remove the folder") from problem
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other or not whole:
            what = f"was made for other {', '.join(other)}" if other else "is cut short"
            raise PostTrainError(f"{self.folder}: the reference cache {what}; remove the folder, and it is made again")
        self.values = np.memmap(self.folder / "values.f32", dtype=np.float32, mode="r")

    def writable(self) -> np.memmap[Any, np.dtype[np.float32]]:
        """The values, to be filled."""
        return np.memmap(self.folder / "values.f32", dtype=np.float32, mode="r+")

    @property
    def done(self) -> int:
        """The number of finished rows, counted from the first."""
        file = self.folder / "done"
        return int(file.read_text()) if file.is_file() else 0

    def mark(self, rows: int) -> None:
        """Record that the first `rows` rows are finished (and flushed)."""
        write_text(self.folder / "done", str(rows))

    def checked(self) -> NDArray[np.float32]:
        """The values.

        Raises:
            PostTrainError: if some are missing though all rows are done.
        """
        for start in range(0, len(self.values), _CHUNK):
            if np.isnan(self.values[start : start + _CHUNK]).any():
                raise PostTrainError(f"{self.folder}: the reference cache lacks values; remove the folder")
        return self.values

    def _make(self, size: int, about: Mapping[str, str]) -> None:
        with whole_folder(self.folder, first_wins=True) as part:
            with (part / "values.f32").open("wb") as stream:
                for start in range(0, max(size, 1), _CHUNK):
                    stream.write(np.full(min(_CHUNK, max(size, 1) - start), np.nan, np.float32).tobytes())
            (part / "about.json").write_text(json.dumps(about))
