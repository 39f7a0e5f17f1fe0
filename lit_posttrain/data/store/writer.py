"""Write the trees of a `TreeStore`."""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.audit.compared import ResponseColumns
from lit_posttrain.data.store.store import TREE_COLUMNS, TreeStore
from lit_posttrain.data.store.units import UNITS, built_in
from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.atomic import move_folder, new_folder
from lit_posttrain.types import Tree

_FLUSH_TOKENS = 1 << 20


class TreeStoreWriter:
    """Fills a store: `with TreeStoreWriter(folder, files) as writer: writer.append(tree) ...; writer.finish()`.

    Everything is written into a folder beside `folder`, which takes its place in `finish` in one step. Leaving the
    block without `finish` (an exception, Ctrl-C) leaves nothing behind.
    """

    def __init__(self, folder: Path | str, files: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.files = list(files)
        self._index = {name: i for i, name in enumerate(self.files)}
        self._columns = {name: array("q") for name in TREE_COLUMNS}
        self._units = {name: array("q") for name in built_in()}
        self._row_hash = array("Q")
        self._offsets = array("q", [0])
        self._labels: dict[str, tuple[array[int], array[float]]] = {}  # by name the segments that have it, and values
        self._hash = hashlib.blake2b(digest_size=16)
        self._tokens: list[NDArray[Any]] = []
        self._loss_mask: list[NDArray[Any]] = []
        self._pending_tokens = 0
        self._record_bytes = 0

    def __enter__(self) -> Self:
        try:
            self._draft = new_folder(self.folder)
        except OSError as error:
            raise PostTrainError(
                f"{self.folder.parent}: no data can be written here ({error.strerror}); "
                "name a writable folder with --data.cache_dir or LIT_POSTTRAIN_CACHE"
            ) from error
        self._tokens_file = (self._draft / "tokens.bin").open("wb")
        self._loss_mask_file = (self._draft / "loss_mask.bin").open("wb")
        self._records_file = (self._draft / "records.bin").open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens_file.close()
        self._loss_mask_file.close()
        self._records_file.close()
        shutil.rmtree(self._draft, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._row_hash)

    def append(self, tree: Tree, row_hash: int = 0) -> None:
        """Add a tree; `row_hash` is an unsigned 64-bit hash of its record."""
        if tree.file not in self._index:
            self._index[tree.file] = len(self.files)
            self.files.append(tree.file)
        prompt, responses, marks = tree.prompt, tree.responses, tree.prompt_loss_mask
        record, begin = tree.record.encode(), self._record_bytes
        self._record_bytes += len(record)
        self._hash.update(record)
        self._records_file.write(record)
        longest = len(prompt) + max((len(r.tokens) for r in responses), default=0)
        marked = int(marks is not None and marks.any())
        shape = (len(self._offsets) - 1, len(prompt), longest, len(responses), marked)
        row = (*shape, self._index[tree.file], tree.line, begin, self._record_bytes)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)
        for name, counted in self._units.items():
            counted.append(UNITS[name](tree))
        self._row_hash.append(row_hash)
        self._segment(prompt, np.zeros(len(prompt), np.bool_) if marks is None else marks, {})
        for response in responses:
            self._segment(response.tokens, response.loss_mask, response.labels)
        if self._pending_tokens >= _FLUSH_TOKENS:
            self._flush()

    def _segment(self, tokens: NDArray[Any], loss_mask: NDArray[Any], labels: Mapping[str, float]) -> None:
        if len(tokens) != len(loss_mask):
            raise ValueError(f"{len(tokens)} tokens with a mask of {len(loss_mask)}")
        self._tokens.append(tokens)
        self._loss_mask.append(loss_mask)
        self._pending_tokens += len(tokens)
        for name, value in labels.items():
            segments, values = self._labels.setdefault(name, (array("q"), array("f")))
            segments.append(len(self._offsets) - 1)
            values.append(value)
        self._offsets.append(self._offsets[-1] + len(tokens))

    def _flush(self) -> None:
        for parts, dtype, file in (
            (self._tokens, np.int32, self._tokens_file),
            (self._loss_mask, np.bool_, self._loss_mask_file),
        ):
            data = np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False).tobytes()
            self._hash.update(data)
            file.write(data)
            parts.clear()
        self._pending_tokens = 0

    def columns(self) -> dict[str, NDArray[Any]]:
        """The per-tree columns and units of what has been appended so far."""
        return {
            **{name: np.array(column, dtype=np.int64) for name, column in (self._columns | self._units).items()},
            "row_hash": np.array(self._row_hash, dtype=np.uint64),
        }

    def responses(self) -> ResponseColumns:
        """The responses of what has been appended so far."""
        columns = self.columns()
        counts, first = columns["num_responses"], columns["first_segment"]
        tree = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(tree)) - np.repeat(np.cumsum(counts) - counts, counts)
        segment = first[tree] + 1 + place
        sizes = np.diff(np.array(self._offsets, dtype=np.int64))
        labels = {name: values[segment] for name, values in self._label_columns().items()}
        return ResponseColumns(tree, sizes[segment], labels)

    def _label_columns(self) -> dict[str, NDArray[np.float32]]:
        """By name one number a segment, NaN where it has none."""
        columns = {name: np.full(len(self._offsets) - 1, np.nan, np.float32) for name in self._labels}
        for name, (segments, values) in self._labels.items():
            columns[name][np.array(segments, dtype=np.int64)] = values
        return columns

    def finish(self, notes: Mapping[str, str] | None = None) -> TreeStore:
        """Put the folder in its place, with `notes` as further text files, and open it. If another process was
        quicker, its folder stays: the content is the same."""
        self._flush()
        self._tokens_file.close()
        self._loss_mask_file.close()
        self._records_file.close()
        offsets, labels = np.array(self._offsets, dtype=np.int64), self._label_columns()
        segments = {
            "offsets": offsets,
            "label_names": np.array(list(labels), dtype=np.str_),
            "labels": np.array(list(labels.values()), np.float32).reshape(len(labels), len(offsets) - 1),
        }
        trees = self.columns()
        for column in (*segments.values(), trees["first_segment"], trees["row_hash"]):
            self._hash.update(np.asarray(column).tobytes())
        np.savez(self._draft / "segments.npz", **segments)  # type: ignore[arg-type]  # keywords are arrays; the stub has allow_pickle among them
        np.savez(self._draft / "trees.npz", **trees)  # type: ignore[arg-type]  # keywords are arrays; the stub has allow_pickle among them
        about = {"files": self.files, "fingerprint": self._hash.hexdigest()}
        for name, text in {"store.json": json.dumps(about), **(notes or {})}.items():
            (self._draft / name).write_text(text)
        move_folder(self._draft, self.folder, first_wins=True)
        return TreeStore(self.folder)
