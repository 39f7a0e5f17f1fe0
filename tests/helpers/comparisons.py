"""Rows of comparisons, and how they are read."""

from __future__ import annotations

from typing import Any

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparison import Comparison
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison

USER = {"role": "user", "content": "Q"}
HUMAN = "\n\nHuman: Q\n\nAssistant:"


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def comparison(row: dict[str, Any], columns: PreferenceColumns | None = None, **options: Any) -> Comparison:
    return recognise_comparison(Record(row, "pairs.jsonl", 1), columns, **options).read(row)


def shown(made: Comparison) -> list[tuple[str, dict[str, float]]]:
    labels = [{name: round(value, 6) for name, value in c.labels.items()} for c in made.candidates]
    return [(c.messages[-1]["content"], known) for c, known in zip(made.candidates, labels, strict=True)]


CHOSEN_A = [("A", {"rank": 0.0}), ("B", {"rank": 1.0})]


def calling(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


SYSTEM = {"role": "system", "content": "S"}
