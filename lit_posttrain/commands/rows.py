"""JSON lines that a subcommand leaves in a file or on the console."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError


def prepare(out: str | None, overwrite: bool) -> None:
    """Make the folder of a file that is to be written, before the work and not after it.

    Raises:
        PostTrainError: if the file is there already.
    """
    refuse_existing(out, overwrite)
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)


def refuse_existing(out: str | None, overwrite: bool) -> None:
    """Refuse to write over a file.

    Raises:
        PostTrainError: if the file is there already.
    """
    if out is not None and Path(out).exists() and not overwrite:
        raise PostTrainError(f"{out} exists already; choose another --out, or pass --overwrite true")


def write(rows: Iterable[Mapping[str, Any]], out: str | None) -> None:
    """Write rows to a file, which changes as a whole, or to the console, each as it comes."""
    if out is None:
        for row in rows:
            sys.stdout.write(_line(row))
            sys.stdout.flush()
        return
    lines = [_line(row) for row in rows]
    scratch = Path(f"{out}.new")
    scratch.write_text("".join(lines), encoding="utf-8")
    scratch.replace(out)
    print(f"wrote {len(lines)} rows to {out}")


def _line(row: Mapping[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which came as an escape and leaves as one
        line = json.dumps(row, default=str)
    return line + "\n"
