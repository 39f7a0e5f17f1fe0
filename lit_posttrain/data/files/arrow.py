"""Rows of Parquet and Arrow files.

Arrow gives every object of a column the keys of all others, with null where it had none: a tool's arguments, for
example, get those of all tools. Nulls within objects are therefore removed, here and in data sets from the hub. In JSON
a null was written on purpose, and stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_posttrain.data.files.readers import require_names
from lit_posttrain.errors import PostTrainError

_BATCH_ROWS = 1024


def parquet_rows(name: str, file: Path) -> Iterator[tuple[int, object]]:
    """Rows of a Parquet file, numbered from 1."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            require_names(table.schema_arrow.names, name)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, arrow_row(row)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise PostTrainError(
            f"{name}: not readable as Parquet after row {number} ({reason}); write it again"
        ) from error


def arrow_rows(name: str, file: Path) -> Iterator[tuple[int, object]]:
    """Rows of an Arrow file or stream, as `datasets` keeps them, numbered from 1."""
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(file)) as source:
            try:
                batches: Iterator[Any] = iter(pyarrow.ipc.open_stream(source))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                table = pyarrow.ipc.open_file(source)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            for batch in batches:
                require_names(batch.schema.names, name)
                for row in batch.to_pylist():
                    number += 1
                    yield number, arrow_row(row)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise PostTrainError(f"{name}: not readable as Arrow after row {number} ({reason}); write it again") from error


def arrow_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the nulls that Arrow adds; a column itself may be null."""
    return {column: without_nulls(value) for column, value in row.items()}


def without_nulls(value: object) -> Any:
    """A value of an Arrow column without the nulls within its objects."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value
