"""Rows of conversations, and how their readers read them."""

from __future__ import annotations

from typing import Any

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.rows.row import Row

ASKED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def example(row: dict[str, Any], columns: Columns | None = None, system_prompt: str | None = None) -> Example:
    return recognise(Record(row, "train.jsonl", 1), columns).example(row, system_prompt)


TALK = [*ASKED, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}]
WORSE = {"role": "assistant", "content": "B"}
BRIEF = {"role": "system", "content": "be brief"}
SHAPES: dict[str, dict[str, Any]] = {
    "conversation": {"messages": ASKED},
    "prompt and completion": {"prompt": "Q", "completion": "A"},
    "pair": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "whole pair": {"chosen": ASKED, "rejected": [ASKED[0], {"role": "assistant", "content": "B"}]},
    "ranking": {"prompt": "Q", "responses": ["A", "B"], "ranks": [0, 1]},
    "judged": {"prompt": "Q", "response1": "A", "response2": "B", "label": 1},
    "unpaired": {"prompt": "Q", "completion": "A", "label": True},
}


def sft(row: Row) -> list[dict[str, Any]]:
    return recognise(Record({**row.aside()}, "rows.jsonl", 1)).example(row).messages


def pair(row: Row) -> list[dict[str, Any]]:
    made = recognise_comparison(Record({**row.aside()}, "rows.jsonl", 1)).read(row)
    return [*made.prompt, *made.candidates[0].messages]
