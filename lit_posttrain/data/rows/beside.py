"""What may stand beside prompts and responses in a row of any kind, read alike by every reader: a system prompt, tools,
earlier turns, variables of the chat template, thoughts, and marks that leave the row out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.marks import ROW_MARKS, is_mark, mark_of
from lit_posttrain.data.rows.message_checks import alike
from lit_posttrain.data.rows.message_keys import SYSTEM, is_message
from lit_posttrain.data.rows.messages import as_messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.tool_schemas import as_tools
from lit_posttrain.data.rows.values import as_json, kind
from lit_posttrain.template_variables import RESERVED, SWITCHES, truth_of

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
TOOL_COLUMNS = ("tools", "functions")
HISTORY = "history"
MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")
VARIABLES = "chat_template_kwargs"
THOUGHT_COLUMNS = ("reasoning_content", "thinking")

# a file by its ending, an address, or the data itself
_MEDIA = re.compile(
    r"\.(png|jpe?g|gif|bmp|webp|tiff?|svg|heic|avif|mp4|m4[av]|mov|avi|mkv|webm|mpe?g|mp3|wav|flac|ogg|opus|aac)"
    r"([?#]\S*)?\s*$|^\s*(data:|(https?|s3|gs|file|ftp|hf)://)",
    re.IGNORECASE,
)
_DATA = re.compile(r"[A-Za-z0-9+/=\r\n]{200,}")
_BRACKETED = re.compile(r"""\s*(\[\s*[\[{"']|\{\s*["'])""")
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Beside:
    """Where a row's system prompt and tools stand: the names that are found by themselves, or those that the user gave.
    default_system: the system prompt of rows that bring none.

    A column that is found by itself and is plainly something else is left unread, for the audit to show: `functions`
    may be a program, `history` a count. Anything else was meant for what its name says, and must hold it."""

    system: tuple[str, ...] = SYSTEM_COLUMNS
    tools: tuple[str, ...] = TOOL_COLUMNS
    default_system: str | None = None

    @classmethod
    def named(cls, system: str | None = None, tools: str | None = None, default_system: str | None = None) -> Beside:
        """With columns that the user named, where there are any."""
        return cls((system,) if system else SYSTEM_COLUMNS, (tools,) if tools else TOOL_COLUMNS, default_system)

    def opened(self, row: Row, prompt: Messages, answer: Sequence[dict[str, Any]] = ()) -> Messages:
        """A prompt behind the row's system prompt and its earlier turns. A system turn of the prompt's own stands in
        place of the row's column, which then counts as unread. answer: what follows the prompt."""
        prompt = _with_history(row, prompt, answer)
        there = [column for column in self.system if row.first((column,))]
        if prompt and prompt[0]["role"] in SYSTEM:
            for column in there:
                if row.peek(column) == prompt[0]["content"]:
                    row[column]
            return prompt
        texts = [column for column in there if isinstance(row.peek(column), str)]
        if there and not texts:
            raise BadRow(
                "wrong type",
                f"`{there[0]}` is {kind(row.peek(there[0]))}, not a string; write the system prompt as text, or rename "
                "the column to leave it out",
            )
        said = next((text for text in (row[column] for column in texts) if text.strip()), self.default_system)
        return [{"role": "system", "content": said}, *prompt] if said and said.strip() else prompt

    def around(self, row: Row) -> dict[str, Any]:
        """Tools and template variables, as arguments of `Example`."""
        return {"tools": self._tools(row), "variables": _variables(row)}

    def _tools(self, row: Row) -> list[dict[str, Any]] | None:
        column = row.first(self.tools)
        if column is None or (self.tools == TOOL_COLUMNS and not _may_be_tools(row.peek(column))):
            return None
        return as_tools(row[column], column)


def refuse_media(row: Row) -> None:
    """Refuse a row with a picture, a film or a sound, which the model would have to answer without. Other text in such
    a column is none: the name of a container.

    Raises:
        BadRow: it has one.
    """
    for column in MEDIA_COLUMNS:
        if row.first((column,)) and _is_media(row.peek(column)):
            raise BadRow(
                "not only text",
                f"`{column}` holds {kind(row.peek(column))}, and only text can be trained on and answered: the model "
                "would not see it; remove the row, or the column if the texts do without it",
            )


def _is_media(value: Any) -> bool:
    """Whether something is a picture or the like, or the place of one."""
    if isinstance(value, str):
        return _MEDIA.search(value) is not None or _DATA.fullmatch(value) is not None
    if isinstance(value, (list, tuple)):  # such as the numbers of a sound or of pixels
        return any(part not in (None, "", {}) and (not isinstance(part, str) or _is_media(part)) for part in value)
    return value not in (None, {}) and not isinstance(value, (bool, int, float))


def refuse_unwanted(row: Row) -> None:
    """Leave out a row that a mark leaves out.

    Raises:
        NothingToLearn: it does.
        BadRow: a mark that says neither yes nor no.
    """
    marks = {key: row.peek(key) for key in ROW_MARKS if row.peek(key) not in (None, "") and is_mark(row.peek(key))}
    trained = mark_of(marks, ROW_MARKS, "")
    for key in marks:
        row[key]
    if trained is False:
        raise NothingToLearn("marked not to be trained on", "the row is marked not to be trained on")


def with_thoughts(row: Row, answer: Messages) -> Messages:
    """A single answer with the thoughts that a column has of it."""
    column = row.first(THOUGHT_COLUMNS)
    if column is None or len(answer) != 1 or column in answer[0] or not isinstance(row.peek(column), str):
        return answer
    return [{**answer[0], column: row[column]}]


def _is_structured(value: Any) -> bool:
    """Whether something is a list or an object, or text that is one or begins like one: a Python list that was printed,
    broken JSON. A story may begin with a bracket too."""
    if not isinstance(value, str):
        return isinstance(value, (list, tuple, dict))
    if _BRACKETED.match(value):
        return True
    try:
        return isinstance(json.loads(value), (list, dict))
    except (ValueError, RecursionError):
        return False


def _may_be_tools(value: Any) -> bool:
    """Whether something may be tool schemas: a list or an object, but no list of plain texts, as names of tools are."""
    if not _is_structured(value):
        return False
    with suppress(ValueError, RecursionError):
        value = json.loads(value) if isinstance(value, str) else value
    texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
    return not texts or any(map(_is_structured, value))


def _variables(row: Row) -> dict[str, Any]:
    found = row[VARIABLES] if row.first((VARIABLES,)) else {}
    if isinstance(found, str):
        found = as_json(found, VARIABLES)
    if not isinstance(found, dict):
        raise BadRow("wrong type", f"`{VARIABLES}` is {kind(found)}, not an object with names and values; mend it")
    if taken := sorted(RESERVED & set(found)):
        raise BadRow(
            "wrong type",
            f"`{VARIABLES}`: {taken[0]} is no variable of a template: "
            "it is set when a conversation is rendered; remove it",
        )
    switches = {name: row[name] for name in SWITCHES if row.first((name,))}  # as verl has them
    try:
        return {name: truth_of(name, value) for name, value in {**switches, **found}.items()}
    except ValueError as problem:
        raise BadRow("wrong type", f"{problem}; mend or remove it") from problem


def _with_history(row: Row, prompt: Messages, answer: Sequence[dict[str, Any]]) -> Messages:
    """Earlier turns of the row (Alpaca: pairs of question and answer; or messages) before its prompt, unless the
    conversation begins with them."""
    if row.first((HISTORY,)) is None:
        return prompt
    if isinstance(row.peek(HISTORY), (bool, int, float)):  # how many turns there were
        return prompt
    found = row[HISTORY]
    found = as_json(found, HISTORY) if _is_structured(found) and isinstance(found, str) else found
    listed = isinstance(found, (list, tuple))
    pairs = listed and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in found)
    if pairs and all(isinstance(side, str) for pair in found for side in pair):
        turns = [{"role": role, "content": c} for p in found for role, c in zip(("user", "assistant"), p, strict=True)]
    elif listed and all(is_message(item) for item in found):
        turns = list(found)
    else:
        raise BadRow(
            "wrong type",
            f"`{HISTORY}` is {kind(found)}, not a list of [question, answer] pairs or of messages; write it as one, or "
            "rename the column to leave it out",
        )
    at = 0 if not prompt or prompt[0]["role"] not in SYSTEM else 1
    earlier = as_messages(turns, HISTORY) if turns else []
    begun = alike([*prompt[at:], *answer][: len(earlier)], earlier)
    return prompt if begun else [*prompt[:at], *earlier, *prompt[at:]]
