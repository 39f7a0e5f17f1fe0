"""A row's prompt with the columns that belong to it, and the part of its responses that follows: the same for all
methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from lit_posttrain.data.formats.comparison import after_prompt
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.message_keys import SYSTEM, Messages, is_message
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.values import kind, not_text


def behind_prompt(
    row: Row, prompt: Messages, extra: Sequence[str], sides: Sequence[Messages], column: str, names: Sequence[str]
) -> tuple[Messages, list[Messages]]:
    """The prompt, and the part of each response that follows it. The texts of the `extra` columns are added to the
    prompt, unless the responses themselves begin with the prompt and lack them. column: the prompt's; names: of the
    responses.

    Raises:
        BadRow: a response begins with another prompt, or an extra column has the wrong type.
    """
    extra = [name for name in extra if row.first((name,))]
    if extra and takes_more(prompt, row[column]):
        if any(side[0]["role"] != "assistant" for side in sides):
            with suppress(BadRow):
                return after_prompt(prompt, sides, column, names)
        prompt = [*prompt[:-1], {**prompt[-1], "content": with_added(prompt[-1]["content"], row, extra)}]
    return after_prompt(prompt, sides, column, names)


def takes_more(prompt: Sequence[Mapping[str, Any]], value: object) -> bool:
    """True if other columns are added to a prompt: to a single user turn, and to text that ends with one. value: from
    which the prompt was read."""
    turns = [message for message in prompt if message["role"] not in SYSTEM]
    return prompt[-1]["role"] == "user" and (isinstance(value, str) or len(turns) == 1)


def with_added(asked: str, row: Row, columns: Sequence[str]) -> str:
    """A prompt with the texts of the columns that belong to it, one paragraph each. A `context` that is an object, or a
    list of anything but texts and messages, is structured data, as in HotpotQA, and stays unread.

    Raises:
        BadRow: a column holds something else than text.
    """
    there = [column for column in columns if row.first((column,)) and not _is_record(column, row.peek(column))]
    return "\n\n".join([asked] * bool(asked.strip()) + [_text(row, column) for column in there])


def _is_record(column: str, value: object) -> bool:
    """True if a value is structured data rather than texts for the prompt. An instruction's `input` never is."""
    if column == "input":
        return False
    if isinstance(value, list):
        return not any(isinstance(part, str) or is_message(part) for part in value)
    return isinstance(value, dict)


def _text(row: Row, column: str) -> str:
    value = row[column]
    if isinstance(value, (list, dict)):
        raise BadRow(
            "wrong type",
            f"`{column}` is {kind(value)}, not a string; write what belongs to the prompt as one text, or rename the "
            "column to leave it out",
        )
    return string(value, column)


def string(value: object, column: str) -> str:
    """A value that must be a string.

    Raises:
        BadRow: it is not.
    """
    if not isinstance(value, str):
        raise not_text(value, f"`{column}`")
    return value


def empty_prompt(column: str) -> BadRow:
    """The error for a row with a blank prompt."""
    return BadRow(
        "empty prompt",
        f"`{column}` is empty: nothing is asked; fill or remove the row (for plain text use "
        "configs/sft.yaml with --data.columns.text)",
    )
