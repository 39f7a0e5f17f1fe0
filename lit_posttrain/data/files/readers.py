"""Read one local file as a stream of (line, row). Only a `.json` document has its whole text in memory.

Every reader takes the file's name as shown to people and its path, and raises PostTrainError with `name:line` for what
it cannot read. A damaged line yields a `BadRow` in place of a row.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lit_posttrain.data.feedback.lines import is_record_file, record_rows
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.beside import (
    HISTORY,
    MEDIA_COLUMNS,
    SYSTEM_COLUMNS,
    THOUGHT_COLUMNS,
    TOOL_COLUMNS,
    VARIABLES,
)
from lit_posttrain.data.rows.kinds import KNOWN, is_label
from lit_posttrain.data.rows.marks import ROW_MARKS
from lit_posttrain.data.rows.message_keys import is_message
from lit_posttrain.data.rows.values import fault_of
from lit_posttrain.errors import PostTrainError
from lit_posttrain.template_variables import SWITCHES

_NOT_SPACE = re.compile(r"\S|\Z")
_BOM = "\ufeff"
_OF_EVERY_ROW = (*SYSTEM_COLUMNS, *TOOL_COLUMNS, VARIABLES, *SWITCHES)
_CSV_FIELD_LIMIT = 2**31 - 1


def jsonl_rows(name: str, file: Path) -> Iterator[tuple[int, object]]:
    """One JSON value per line, optionally gzipped; blank lines are skipped. Of a file of decisions, see
    `feedback.log`, those that were not undone."""
    number = 0
    try:
        for number, row in record_rows(file) if is_record_file(file) else _lines(file):
            yield number, row
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PostTrainError(
            f"{name}:{number + 1}: damaged gzip data ({error}); copy or compress the file again"
        ) from error


def _lines(file: Path) -> Iterator[tuple[int, object]]:
    opener: Callable[..., Any] = gzip.open if file.name.lower().endswith(".gz") else open
    with opener(file, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.isspace():
                yield number, _parse(raw)


def _parse(raw: bytes) -> Any:
    """The value of a line, or what is wrong with it."""
    try:
        # without the line's end: what is missing before it would be reported as column 1 of the next line. Files that
        # were put one behind the other have a mark of their encoding in the middle
        return json.loads(raw.decode().removeprefix(_BOM).rstrip(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return BadRow("not UTF-8", _not_utf8(error))
    except _Twice as error:
        return BadRow("column twice", str(error))
    except (ValueError, RecursionError) as error:
        return BadRow("not valid JSON", f"not valid JSON ({fault_of(error)}); mend or remove the line")


class _Twice(ValueError):
    """A key or column that occurs twice: one of the two values would be lost."""

    def __init__(self, names: Iterable[str]) -> None:
        listed = list(names)
        twice = dict.fromkeys(name for name in listed if listed.count(name) > 1)
        super().__init__(f"{', '.join(f'`{name}`' for name in twice)} stands twice; rename or remove one")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Twice(key for key, _ in pairs)
    return made


def _decode(raw: bytes, where: str, first: bool = True) -> str:
    """Text of bytes. first: they are the first of a file, where a byte order mark may stand."""
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise PostTrainError(f"{where}: {_not_utf8(error)}") from error


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8 (byte 0x{byte:02x} at column {error.start + 1}); save the file as UTF-8"


def json_rows(name: str, file: Path) -> Iterator[tuple[int, object]]:
    """Rows of a list of objects, of a single object, of an object that holds a list of them, or of objects one after
    another (JSONL with another suffix); of a file of decisions as `jsonl_rows`."""
    if is_record_file(file):
        yield from record_rows(file)
        return
    text = _decode(file.read_bytes(), name)
    if text.lstrip()[:1] == "[":
        yield from _json_items(name, text, text.index("[") + 1, listed=True)
        return
    first = [value for _, value in islice(_json_items(name, text, 0, listed=False), 2)]
    if len(first) != 1 or not isinstance(first[0], dict):
        yield from _json_items(name, text, 0, listed=False)
        return
    yield from enumerate(_rows_in(first[0], name), 1)


def _rows_in(document: dict[str, Any], name: str) -> list[Any]:
    """The rows of a document that is one object: itself, or the rows of the list in it, each with the document's other
    keys, such as a system prompt."""
    if _is_by_column(document):
        raise PostTrainError(
            f"{name}: columns instead of rows ({', '.join([*document][:6])}); write a list of objects, with pandas "
            'to_json(path, orient="records")'
        )
    if not KNOWN.isdisjoint(document):
        return [document]
    lists = {key: value for key, value in document.items() if isinstance(value, list) and key not in _OF_EVERY_ROW}
    if len(lists) > 1:
        raise PostTrainError(
            f"{name}: one object with {len(lists)} lists in it, where rows are expected ({', '.join(lists)}); write a "
            "list of objects, or an object that holds one such list"
        )
    (rows,) = lists.values() or [[document]]
    if not lists or (rows and all(map(is_message, rows))):
        return [document]
    # what stands beside the rows is said of each of them, as far as it does not say otherwise. Of a name that means
    # something of a row the document may mean something else: it gets one that the audit shows and nothing reads
    others = {key: value for key, value in document.items() if key not in lists}
    beside = {f"document.{key}" if _is_of_a_row(key) else key: value for key, value in others.items()}
    return [{**beside, **row} if isinstance(row, dict) else row for row in rows]


def _is_of_a_row(name: str) -> bool:
    """True if a column of this name describes its own row only."""
    return name in (*ROW_MARKS, *THOUGHT_COLUMNS, *MEDIA_COLUMNS, HISTORY) or is_label(name)


def _is_by_column(document: Mapping[str, Any]) -> bool:
    """True if the values are columns: lists of single values, or objects with row numbers as keys."""
    values = list(document.values())
    numbered = all(isinstance(v, dict) and [*v] == [str(i) for i in range(len(v))] for v in values)
    plain = all(isinstance(v, list) and not any(isinstance(part, (list, dict)) for part in v) for v in values)
    return (
        bool(values)
        and (numbered or (plain and len(values) > 1))
        and {len(v) for v in values} == {max(len(values[0]), 1)}
    )


def _json_items(name: str, text: str, at: int, listed: bool) -> Iterator[tuple[int, object]]:
    """Values one by one from position `at`, so that a large list is never in memory as objects."""
    decoder, number = json.JSONDecoder(object_pairs_hook=_object), 0
    at = _after_space(text, at)
    while listed or at < len(text):
        if listed and text[at : at + 1] == "]":
            _refuse_rest(name, text, _after_space(text, at + 1))
            return
        try:
            value, at = decoder.raw_decode(text, at)
            number += 1
            yield number, value
            at = _after_space(text, at)
            if listed and text[at : at + 1] == ",":
                at = _after_space(text, at + 1)
            elif listed and text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        except json.JSONDecodeError as error:
            raise PostTrainError(
                f"{name}: not valid JSON ({error.msg} line {error.lineno} column {error.colno}); mend the file"
            ) from error
        except _Twice as error:
            raise PostTrainError(f"{name}:{number + 1}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise PostTrainError(f"{name}:{number + 1}: not valid JSON ({fault_of(error)}); mend the file") from error


def _refuse_rest(name: str, text: str, at: int) -> None:
    if at < len(text):
        where = f"line {text.count(chr(10), 0, at) + 1}"
        raise PostTrainError(
            f"{name}: the list of rows ends, and {text[at : at + 20]!r} follows on {where}; write one list (or give "
            "files that were put together one by one)"
        )


def _after_space(text: str, at: int) -> int:
    found = _NOT_SPACE.search(text, at)
    return found.start() if found else len(text)


def require_names(names: list[str], name: str) -> None:
    """Refuse a table with two columns of the same name.

    Raises:
        PostTrainError: it has two.
    """
    if len(set(names)) < len(names):
        raise PostTrainError(f"{name}: the column {_Twice(names)}")


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def csv_rows(name: str, file: Path) -> Iterator[tuple[int, object]]:
    """Rows below a header line, every cell a string, numbered by the physical line on which they start."""
    delimiter = "\t" if name.lower().endswith(".tsv") else ","
    # the limit belongs to the whole process: it is lifted while a row is read, and put back
    before = csv.field_size_limit()
    with file.open("rb") as stream:
        lines = (_decode(raw, f"{name}:{number}", first=number == 1) for number, raw in enumerate(stream, 1))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1
            try:
                csv.field_size_limit(_CSV_FIELD_LIMIT)
                cells = next(reader, None)
            except csv.Error as error:
                raise PostTrainError(f"{name}:{line}: not valid CSV ({error}); mend the row") from error
            finally:
                csv.field_size_limit(before)
            if cells is None:
                return
            if header is None:
                header = cells
                require_names(header, f"{name}:{line}")
            elif cells == header:
                raise PostTrainError(f"{name}:{line}: the header line is repeated here; remove the line")
            elif len(cells) == len(header):
                yield line, dict(zip(header, cells, strict=True))
            elif cells:
                yield (
                    line,
                    BadRow(
                        "cells",
                        f"{_number(len(cells), 'cell')} under {_number(len(header), 'column')} ({', '.join(header)}); "
                        "mend the row: quote cells that hold the separator",
                    ),
                )
