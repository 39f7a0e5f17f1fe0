"""Errors for files whose columns are not those of conversations: what was found, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.beside import SYSTEM_COLUMNS
from lit_posttrain.data.rows.kinds import ANSWERS, CONVERSATION, INPUT, PROMPT, answers_itself
from lit_posttrain.data.rows.messages import by_message, of_columns
from lit_posttrain.data.rows.turns import conversation
from lit_posttrain.data.rows.values import kind


def texts_beside(data: Mapping[str, Any]) -> list[str]:
    """Columns of text that may be answers: all but those with another known meaning."""
    known = {*PROMPT, *INPUT, *SYSTEM_COLUMNS, "id", "uuid"}
    return [name for name, value in data.items() if name not in known and isinstance(value, str) and value.strip()]


def remedy(data: Mapping[str, Any]) -> str:
    """What to do about unrecognised columns."""
    (only, *others) = data or [""]
    if not others and (mark := next((mark for mark in (";", "\t", "|") if mark in only), None)):
        return f"the header is one column: its separator may be {mark!r}; write commas, or tabs in a .tsv file"
    if options := _spelled_otherwise(data):
        return f"pass {options}"
    return "name them with --data.columns.prompt X --data.columns.completion Y (or columns.messages, columns.text)"


def _spelled_otherwise(data: Mapping[str, Any]) -> str:
    """The options for columns that are known except for capital letters; empty if there are none."""
    known = {name.lower(): name for name in data}
    for prompt, answers in ANSWERS.items():
        answer = next((column for column in answers if column in known), None)
        if prompt in known and answer:
            return f"--data.columns.prompt {known[prompt]} --data.columns.completion {known[answer]}"
    options = {**dict.fromkeys(CONVERSATION, "messages"), "text": "text"}
    return next((f"--data.columns.{options[name]} {known[name]}" for name in options if name in known), "")


def no_conversation(data: Mapping[str, Any]) -> str:
    """What a column with the name of conversations holds instead, with the remedy; empty if there is no such column."""
    column = next((name for name in CONVERSATION if isinstance(data.get(name), dict) or [*data] == [name]), None)
    if column is None or isinstance(by_message(data[column]), (list, str)):
        return ""
    found = of_columns(data[column]) or kind(data[column])
    return f"`{column}` is {found}, not a list of messages; mend it"


def imitated(data: Mapping[str, Any]) -> str:
    """How to train on the better side alone, if a single option does it."""
    if "chosen" not in data:
        column = next((name for name in CONVERSATION if name in data), None)
        return (
            f"; to imitate all of them, pass --data.columns.messages {column}"
            if column and answers_itself(data)
            else ""
        )
    prompt = next((column for column in PROMPT if column in data), None)
    if prompt is None:
        side = "messages" if isinstance(data["chosen"], list) else ""
    else:
        side = "completion" if _is_read_alike(data[prompt], data["chosen"]) else ""
    return f"; to imitate the better side, pass --data.columns.{side} chosen" if side else ""


def _is_read_alike(prompt: object, response: object) -> bool:
    """True if the texts are neither transcripts nor JSON, which preference data reads as messages."""
    notes: list[str] = []
    with suppress(BadRow):
        conversation(prompt, "prompt", notes, "user")
        conversation(response, "chosen", notes)
    return not notes
