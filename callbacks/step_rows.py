"""Files of JSON lines with a step: after a resume, rows of repeated steps are replaced."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_posttrain.runs.atomic import write_text


def rewrite(file: Path, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the rows of `step` and later by new ones; the file is replaced in one step. A row without a step is
    dropped by the next call."""
    old = file.read_text(encoding="utf-8").rstrip("\n").split("\n") if file.exists() else []
    kept = [line for line in old if _step_of(line) < step]
    added = [json.dumps(row, ensure_ascii=False) for row in rows]
    if kept == old and not added:
        return
    write_text(file, "".join(line + "\n" for line in [*kept, *added]))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a crash cut short
