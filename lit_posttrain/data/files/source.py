"""A source of rows: a file or a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.values import kind
from lit_posttrain.errors import PostTrainError


@dataclass(slots=True)
class Record:
    """One row. file: the source as the user named it. line: 1-based; in JSONL and CSV the physical line on which the
    row starts, elsewhere its number. problem: why the row could not be read; `data` is empty then."""

    data: dict[str, Any]
    file: str
    line: int
    problem: BadRow | None = None


@dataclass(frozen=True)
class Source:
    """A source of rows: `name` as shown to people, the local files with its content, and a function that reads it.
    beside: what else is in the same folder and is not read, in words. part: which rows of the files are read, if not
    all. by: import path of the function that every row went through, see `own_format`."""

    name: str
    files: tuple[Path, ...]
    rows: Callable[[], Iterator[tuple[int, object]]]
    beside: str = ""
    part: str = ""
    by: str = ""

    def records(self, bad: bool = False) -> Iterator[Record]:
        """Stream the rows. bad: include unreadable rows, as records with a `problem`.

        Raises:
            PostTrainError: an unreadable row (unless `bad`) or file, or a source without rows.
        """
        line = 0
        for line, row in self.rows():
            if isinstance(row, dict):
                yield Record(row, self.name, line)
                continue
            problem = row if isinstance(row, BadRow) else _no_object(row)
            if not bad and not isinstance(problem, NothingToLearn):
                raise PostTrainError(f"{self.name}:{line}: {problem}")
            yield Record({}, self.name, line, problem)
        if line == 0:
            raise PostTrainError(f"{self.name}: the file holds no rows; name another file or fill this one")

    def digest(self) -> str:
        """Hash of the content and of how it is read, independent of names and times."""
        total = hashlib.blake2b(self.part.encode(), digest_size=16)
        for file in self.files:
            total.update("".join(file.suffixes[-2:]).lower().encode())
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "blake2b").digest())
        if not self.files:
            for _, row in self.rows():
                total.update(json.dumps(row, sort_keys=True, default=str).encode())
        return total.hexdigest()


def _no_object(row: object) -> BadRow:
    what = f"the row is {kind(row)}, not an object with named columns; write one JSON object per row"
    return BadRow("not an object", what)
