"""Read rows of each shape of conversation: plain text, a list of messages, a prompt with its answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lit_posttrain.data.formats.comparison import begins_with
from lit_posttrain.data.formats.prompt_texts import behind_prompt, empty_prompt, string, with_added
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.beside import with_thoughts
from lit_posttrain.data.rows.kinds import CONVERSATION
from lit_posttrain.data.rows.message_checks import check_order, says
from lit_posttrain.data.rows.message_keys import ROLE_KEYS, Messages, is_message
from lit_posttrain.data.rows.messages import as_messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import MESSAGES_AS_TEXT, from_json
from lit_posttrain.data.rows.values import not_text


@dataclass
class Parts:
    """The contents of a row's columns. text: as in `Example`."""

    prompt: Messages = field(default_factory=list)
    response: Messages = field(default_factory=list)
    text: tuple[str, str] | None = None


# name, columns that every row needs, reader
Found = tuple[str, tuple[str, ...], Callable[[Row], Parts]]


def plain(column: str) -> Found:
    def read(row: Row) -> Parts:
        return Parts(text=("", _filled(row[column], column, "text")))

    return column, (column,), read


def whole(column: str) -> Found:
    def read(row: Row) -> Parts:
        messages = as_messages(row[column], column)
        check_order(messages)
        first = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        return Parts(messages[:first], messages[first:])

    return column, (column,), read


def pair(name: str, prompt: str, answer: str, extra: tuple[str, ...] = (), separator: str = "") -> Found:
    """A prompt and its answer. extra: columns that are added to the prompt of rows that have them."""

    def read(row: Row) -> Parts:
        asked = from_json(row[prompt], prompt, row.notes)
        asked = [asked] if is_message(asked) else asked
        if isinstance(asked, list) or answer in CONVERSATION:
            answered = from_json(row[answer], answer, row.notes)
        else:
            answered = _answer_to_text(row, prompt, answer, extra)
        if isinstance(asked, str) and isinstance(answered, str):
            _filled(answered, answer, "completion")
            asked = with_added(asked, row, extra)
            if not asked.strip():
                raise empty_prompt(prompt)
            said = with_thoughts(row, [{"role": "assistant", "content": answered}])
            return Parts([{"role": "user", "content": asked}], said, text=(asked + separator, answered))
        turns, said = _side(asked, prompt, "user"), _side(answered, answer, "assistant")
        answered_before = turns[-1]["role"] in ("assistant", "tool")
        if not answered_before or said[0]["role"] == "assistant" or begins_with(said, turns):
            turns, (said,) = behind_prompt(row, turns, extra, [said], prompt, [answer])
        if not said:
            raise BadRow("no assistant turn", f"`{answer}` is the prompt and no answer; add it, or remove the row")
        if not any(map(says, turns)):
            raise empty_prompt(prompt)
        return Parts(turns, with_thoughts(row, said))

    return name, (prompt, answer), read


def _answer_to_text(row: Row, prompt: str, answer: str, extra: tuple[str, ...]) -> Any:
    """The answer to a prompt that is text. Messages in JSON text are read as messages if they can follow the prompt;
    otherwise they stay text: somebody may have asked for a dialogue in JSON. The audit counts both."""
    value, notes = row[answer], list[str]()
    if not isinstance(value, str):
        return value
    with suppress(BadRow):
        found = from_json(value, answer, notes)
        if found is value:
            return value
        turns, said = _side(row[prompt], prompt, "user"), _side(found, answer, "assistant")
        _, (rest,) = behind_prompt(row.aside(), turns, extra, [said], prompt, [answer])
        if rest and rest[0]["role"] == "assistant":
            row.notes += notes
            return found
    row.notes.append(MESSAGES_AS_TEXT)
    return value


def _side(value: object, column: str, role: str) -> Messages:
    if isinstance(value, str):
        return as_messages([{"role": role, "content": value}], column)
    value = [value] if isinstance(value, dict) and any(key in value for key in ROLE_KEYS) else value
    if not isinstance(value, list):
        raise not_text(value, f"`{column}`", "a string or a list of messages")
    return as_messages(value, column)


def _filled(value: object, column: str, called: str) -> str:
    """A string that must not be empty; `called` names it in the error."""
    if not string(value, column).strip():
        raise BadRow(f"empty {called}", f"`{column}` is empty; there is nothing to train on")
    return str(value)
