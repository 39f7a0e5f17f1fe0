"""Writes the JSON lines of a subcommand to a file or the console."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.runs.atomic import scratch_file, whole_file
from lit_posttrain.runs.json_lines import json_line


def prepare(out: str | None, overwrite: bool, data: Sequence[str] = (), option: str = "--out") -> None:
    """Check before the work that a file can be written; `data` and `option` as in `refuse_existing`.

    Raises:
        PostTrainError: if the file is there already, or cannot be made.
    """
    refuse_existing(out, overwrite, data, option)
    if out is None:
        return
    with _named(out, option):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        scratch_file(Path(out)).touch()
        scratch_file(Path(out)).unlink()


def refuse_existing(out: str | None, overwrite: bool, data: Sequence[str] = (), option: str = "--out") -> None:
    """Refuse to overwrite a file. data: the files that are read, which `overwrite` does not replace. option: what names
    the file.

    Raises:
        PostTrainError: if the file is there already, or is none.
    """
    if out is None:
        return
    with _named(out, option):
        there, folder = Path(out).exists(), Path(out).is_dir()
    if folder:
        raise PostTrainError(f"{option} {out}: a folder; name a file")
    if any(Path(out).resolve() == Path(file).resolve() for file in data):
        raise PostTrainError(f"{option} {out}: a file of the data; choose another")
    if there and not overwrite:
        raise PostTrainError(f"{out} exists already; choose another {option}, or pass --overwrite true")


@contextmanager
def _named(out: str, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise PostTrainError(f"{option} {out}: cannot be written ({reason}); choose another file") from problem


def write(rows: Iterable[Mapping[str, Any]], out: str | None) -> None:
    """Write rows to a file, which is replaced in one step, or to the console, each as it comes."""
    if out is None:
        for row in rows:
            sys.stdout.write(json_line(row))
            sys.stdout.flush()
        return
    count = 0
    with whole_file(Path(out)) as part, part.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json_line(row))
            count += 1
    print(f"wrote {count} row{'' if count == 1 else 's'} to {out}")
