"""Exports of annotation tools: a record with several people's answers becomes a row for each decision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lit_posttrain.data.feedback.argilla import from_argilla, is_argilla
from lit_posttrain.data.feedback.label_studio import from_label_studio, is_label_studio
from lit_posttrain.data.feedback.lines import as_columns
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.files.source import Source
from lit_posttrain.data.rows.bad_rows import BadRow

ReadDecisions = Callable[[Mapping[str, Any]], list[Decision]]


def unfolded(source: Source) -> Source:
    """The source with the decisions in an export of Argilla or Label Studio as its rows, as `record_rows` has those of
    the project's own files; the source itself if it is no such export. What a model suggested counts where nobody has
    decided."""
    return replace(source, rows=partial(_rows, source.rows))


def export_reader(row: Mapping[str, Any]) -> ReadDecisions | None:
    """What reads the decisions in the rows of a file, by its first row; None if it is no export of a tool."""
    if is_label_studio(row):
        return from_label_studio
    return from_argilla if is_argilla(row) else None


def _rows(rows: Callable[[], Iterator[tuple[int, object]]]) -> Iterator[tuple[int, object]]:
    read, looked = None, False
    for line, row in rows():
        if not looked and isinstance(row, dict):
            read, looked = export_reader(row), True
        if read is None or not isinstance(row, dict):
            yield line, row
            continue
        try:
            found = read(row)
        except BadRow as problem:
            yield line, problem
            continue
        people = [one for one in found if one.judge is None]
        yield from ((line, as_columns(one)) for one in people or found)
