"""What `predict` says of every response."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lit_posttrain.types import TreeBatch


def predicted_rows(batch: TreeBatch, file: int, name: str, values_M: Tensor) -> list[dict[str, Any]]:
    """One per response: row and file (index of its data set), response (its index among those to the prompt, as the
    row has them), what the data says of it (`Response.labels`: rank 0 is the best, so the chosen one of a pair; good),
    a value by its name, and its trained tokens."""
    rows = [batch.example_ids[tree] for tree in batch.response_tree.tolist()]
    labels = {label: values.tolist() for label, values in batch.per_response.columns.items()}
    found: list[dict[str, Any]] = []
    places: dict[int, int] = {}
    for number, (row, value, size) in enumerate(zip(rows, values_M.tolist(), batch.lengths.tolist(), strict=True)):
        place = places[row] = places.get(row, -1) + 1
        own = {label: _short(values[number]) for label, values in labels.items() if not math.isnan(values[number])}
        found.append({"row": row, "file": file, "response": place, **own, name: value, "tokens": int(size)})
    return found


def _short(value: float) -> float:
    return int(value) if value.is_integer() else value
