"""A row as a line of a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def json_line(row: Mapping[str, Any]) -> str:
    """The line, which UTF-8 can encode. Values that JSON does not know, such as the dates of a Parquet file, become
    texts."""
    line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which came as an escape and leaves as one
        return json.dumps(row, default=str) + "\n"
    return line
