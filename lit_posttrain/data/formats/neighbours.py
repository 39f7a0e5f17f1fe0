"""Files with one row for each response, of which neighbours with the same prompt are compared with each other.

Only neighbours are joined, so that such a file can be read as a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from lit_posttrain.data.files.source import Source
from lit_posttrain.data.formats.published import RATED
from lit_posttrain.data.rows.bad_rows import NothingToLearn

_COLUMNS = {"prompt", "response", *RATED}


def joined(source: Source) -> Source:
    """A source with neighbouring rows of ratings (as HelpSteer2 has them) of one prompt as one row, at the line of the
    first one: `prompt`, and a list for every other column. Other rows stay as they are."""
    return replace(source, rows=partial(_joined, source.rows))


def _joined(rows: Callable[[], Iterator[tuple[int, object]]]) -> Iterator[tuple[int, object]]:
    waiting: list[dict[str, Any]] = []  # rows of the same prompt
    first = 0
    for line, row in rows():
        rated = isinstance(row, dict) and set(row) >= _COLUMNS
        if waiting and not (isinstance(row, dict) and rated and row["prompt"] == waiting[0]["prompt"]):
            yield first, _together(waiting)
            waiting = []
        if not (isinstance(row, dict) and rated):
            yield line, row
            continue
        first = first if waiting else line
        waiting.append(row)
    if waiting:
        yield first, _together(waiting)


def _together(rows: list[dict[str, Any]]) -> dict[str, Any] | NothingToLearn:
    if len(rows) == 1:
        return NothingToLearn("one response", "no neighbouring row has the same prompt: nothing to compare")
    columns = dict.fromkeys(column for row in rows for column in row if column != "prompt")
    return {"prompt": rows[0]["prompt"], **{column: [row.get(column) for row in rows] for column in columns}}
