"""A record's columns, and which of them were read: whatever was not stands in the audit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lit_posttrain.data.rows.messages import by_message

_NOTHING: tuple[Any, ...] = (None, "", [], {})


class Row(Mapping[str, Any]):
    """The columns of a record. Looking a column up counts as reading it; `peek` and `in` do not. Messages that stand by
    key are given as a list of them.

    notes: what was found out about the record that a person should know, in words. unused: keys within columns that
    nobody reads, such as `responses[].model`.
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
        """A value without reading it; None where there is no such column."""
        return by_message(self._data.get(column))

    def first(self, columns: Iterable[str]) -> str | None:
        """The first of some columns in which there is something that nobody has read as something else."""
        left = (column for column in columns if column not in self._read)
        return next((column for column in left if self.peek(column) not in _NOTHING), None)

    def aside(self) -> Row:
        """The same columns, of which none has been read."""
        return Row(self._data)

    @property
    def read(self) -> frozenset[str]:
        """Columns that were looked up."""
        return frozenset(self._read)

    def rest(self) -> dict[str, Any]:
        """The columns that were not read, whatever is in them."""
        return {name: value for name, value in self._data.items() if name not in self._read}

    def read_all(self) -> None:
        """All columns are used, by rewards for example."""
        self._read.update(self._data)

    @property
    def unread(self) -> list[str]:
        """Columns with something in them that nobody has read, and unused keys within those that were."""
        left = [name for name, value in self._data.items() if name not in self._read and value not in _NOTHING]
        return [*left, *dict.fromkeys(self.unused)]
