"""Rows for files in every format."""

from __future__ import annotations

ROWS = [{"prompt": f"question {i}", "completion": f"answer\n{i}, with é"} for i in range(5)]
