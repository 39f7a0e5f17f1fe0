"""The lines of a file of decisions, and the decisions in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, TypeGuard, cast

from lit_posttrain.data.feedback.record import VERSION, Decision
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn

_BEGINS = f'{{"feedback": {VERSION}, "id": "'.encode()  # every line that is written here
_UNDONE = b'"undone"'
_FIELDS = frozenset({"feedback", *(one.name for one in fields(Decision))})


def record_rows(file: Path) -> Iterator[tuple[int, object]]:
    """The decisions of a file as rows of data, with their line: as `read_decisions` has them. The columns of the item's
    row are columns again; those that are called like a field of the record become `columns.NAME`."""
    for number, row in kept(file):
        yield number, row if isinstance(row, BadRow) else as_columns(row)


def as_columns(decision: Decision) -> dict[str, Any]:
    """A decision as a row of data, see `record_rows`."""
    said = decision.row()
    beside = said.pop("columns", {})
    return {**said, **{f"columns.{name}" if name in _FIELDS else name: value for name, value in beside.items()}}


def is_record(value: object) -> TypeGuard[dict[str, Any]]:
    """True if the value of a line is a decision, of whatever version. Other data may have a column `feedback`."""
    return (
        isinstance(value, dict) and isinstance(value.get("feedback"), int) and {"id", "item", "annotator"} <= {*value}
    )


def is_record_file(file: Path) -> bool:
    """True if the first lines of a file, which may be torn, are decisions."""
    torn = False
    with _opened(file) as stream:
        for raw in stream:
            value = None if raw.isspace() else parse_line(raw)
            if isinstance(value, NothingToLearn):
                torn = True
            elif value is not None:
                return is_record(value)
    return torn


def kept(file: Path) -> Iterator[tuple[int, Decision | BadRow]]:
    """Decisions, and in place of lines that cannot be read what is wrong with them. Undone ones and repetitions are
    left out; so is the line that undoes."""
    undone = {str(value.get("undoes")) for _, value in _values(file, _UNDONE) if _undoes(value)}
    seen: set[str] = set()
    for number, value in _values(file):
        if isinstance(value, BadRow):
            yield number, value
            continue
        if _undoes(value):
            continue
        try:
            decision = Decision.of(_beside(value)) if isinstance(value, dict) else None
        except BadRow as problem:
            yield number, problem
            continue
        if decision is None:
            yield number, BadRow("record", "no decision, as the other lines are; remove the line")
        elif decision.id not in undone and decision.id not in seen:
            seen.add(decision.id)
            yield number, decision


def _beside(row: dict[str, Any]) -> dict[str, Any]:
    """A line to which somebody, such as `score`, has added columns, with these among the item's."""
    added = {name: value for name, value in row.items() if name not in _FIELDS}
    return {name: row[name] for name in row if name in _FIELDS} | (
        {"columns": {**row.get("columns", {}), **added}} if added else {}
    )


def _undoes(value: object) -> bool:
    return isinstance(value, dict) and value.get("outcome") == "undone"


def _values(file: Path, having: bytes = b"") -> Iterator[tuple[int, Any]]:
    with _opened(file) as stream:
        for number, raw in enumerate(stream, 1):
            if having in raw and not raw.isspace():
                yield number, parse_line(raw)


def _opened(file: Path) -> IO[bytes]:
    zipped = file.name.lower().endswith(".gz")
    return cast(IO[bytes], gzip.GzipFile(file, "rb")) if zipped else file.open("rb")


def parse_line(raw: bytes) -> Any:
    """The value of a line; of one that ends too early, as a killed writer leaves it, `NothingToLearn`."""
    raw = raw.strip()
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        if (raw.startswith(_BEGINS) or _BEGINS.startswith(raw)) and _ends_early(raw, error):
            told = "ends too early, as a writer that was killed leaves it: skipped, nobody was told that it is kept"
            return NothingToLearn("torn line", told)
        return BadRow("not valid JSON", f"not valid JSON ({error}); mend or remove the line")


def _ends_early(raw: bytes, error: ValueError | RecursionError) -> bool:
    if not raw.endswith(b"}") or not isinstance(error, json.JSONDecodeError):
        return not raw.endswith(b"}")
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc)
