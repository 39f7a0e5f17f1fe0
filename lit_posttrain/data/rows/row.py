"""A record's columns, with a record of which ones were read: the audit lists the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lit_posttrain.data.rows.messages import by_message

_NOTHING: tuple[Any, ...] = (None, "", [], {})


class Row(Mapping[str, Any]):
    """The columns of a record. Looking up a column counts as reading it; `peek` and `in` do not. Messages that are
    stored per key are returned as a list of messages.

    notes: how the record was read, for the audit, in words. unused: keys within columns that are not used, such as
    `responses[].model`.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._read: set[str] = set()
        self.notes: list[str] = []
        self.unused: list[str] = []

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Row:
        """The row itself, or a new one."""
        return data if isinstance(data, Row) else cls(data)

    def __getitem__(self, column: str) -> Any:
        value = by_message(self._data[column])
        self._read.add(column)
        return value

    def __contains__(self, column: object) -> bool:
        return column in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def peek(self, column: str) -> Any:
        """A value, without counting it as read; None if there is no such column."""
        return by_message(self._data.get(column))

    def first(self, columns: Iterable[str]) -> str | None:
        """The first of some columns that is not empty and has not been read as something else."""
        left = (column for column in columns if column not in self._read)
        return next((column for column in left if self.peek(column) not in _NOTHING), None)

    def aside(self) -> Row:
        """The same columns, all unread."""
        return Row(self._data)

    @property
    def read(self) -> frozenset[str]:
        """The columns that were looked up."""
        return frozenset(self._read)

    def rest(self) -> dict[str, Any]:
        """The columns that were not read, empty ones included."""
        return {name: value for name, value in self._data.items() if name not in self._read}

    def read_all(self) -> None:
        """Count all columns as read: rewards may use any."""
        self._read.update(self._data)

    @property
    def unread(self) -> list[str]:
        """Unread columns that are not empty, and unused keys within those that were read."""
        left = [name for name, value in self._data.items() if name not in self._read and value not in _NOTHING]
        return [*left, *dict.fromkeys(self.unused)]
