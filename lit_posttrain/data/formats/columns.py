"""Columns that the user named, and columns that every row of a file must have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError


@dataclass(kw_only=True)
class ColumnsBeside:
    """Names of the columns that belong to rows of every kind, where they are not recognised by themselves.

    Args:
        system: Column with a system prompt of the row's own. A column called `system` is found without this.
        tools: Column with the row's tool schemas (a list, or JSON text). A column called `tools` is found without this.
    """

    system: str | None = None
    tools: str | None = None


def check_needs(needs: Sequence[str], data: Mapping[str, Any]) -> None:
    """Raise BadRow where a record lacks a column of its file's first record."""
    for column in needs:
        if column not in data:
            raise BadRow(
                "missing column",
                f"no column `{column}` (found: {', '.join(data)}); every row of a file needs the columns "
                "of its first row",
            )


def require_columns(record: Record, named: object) -> None:
    """Check that the columns named by the user, the values of a dataclass, exist in a file's first record.

    Raises:
        PostTrainError: one does not exist.
    """
    for option, value in vars(named).items():
        for column in value if isinstance(value, list) else [value] if value is not None else []:
            if column not in record.data:
                close = difflib.get_close_matches(column, record.data, n=1)
                hint = f"; did you mean `{close[0]}`?" if close else ""
                raise PostTrainError(
                    f"{record.file}:{record.line}: no column `{column}` (--data.columns.{option}); "
                    f"the columns are {', '.join(record.data)}{hint}"
                )
