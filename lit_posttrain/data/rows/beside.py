"""What belongs to a row beside its prompt and responses, read alike by every reader: system prompt, tools, history,
template variables, thoughts, and marks that exclude the row from training."""

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
from lit_posttrain.data.rows.message_keys import SYSTEM, Messages, is_message
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


@dataclass(frozen=True)
class Beside:
    """Columns of a row's system prompt and tools: the recognised names, or those that the user gave. default_system:
    the system prompt of rows without one.

    A recognised column that plainly holds something else is left unread, for the audit to show: `functions` may be a
    program, `history` a count. Anything else must hold what its name says.
    """

    system: tuple[str, ...] = SYSTEM_COLUMNS
    tools: tuple[str, ...] = TOOL_COLUMNS
    default_system: str | None = None

    @classmethod
    def named(cls, system: str | None = None, tools: str | None = None, default_system: str | None = None) -> Beside:
        """With the columns that the user named, if any."""
        return cls((system,) if system else SYSTEM_COLUMNS, (tools,) if tools else TOOL_COLUMNS, default_system)

    def opened(self, row: Row, prompt: Messages, answer: Sequence[dict[str, Any]] = ()) -> Messages:
        """The prompt after the row's system prompt and earlier turns. A system turn within the prompt replaces the
        row's column, which then counts as unread. answer: what follows the prompt."""
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
    """Refuse a row with an image, a video or audio, which the model would have to answer without seeing it. Other text
    in such a column, such as the name of a container, is accepted.

    Raises:
        BadRow: the row has one.
    """
    for column in MEDIA_COLUMNS:
        if row.first((column,)) and _is_media(row.peek(column)):
            raise BadRow(
                "not only text",
                f"`{column}` holds {kind(row.peek(column))}, and only text can be trained on and answered: the model "
                "would not see it; remove the row, or the column if the texts do without it",
            )


def _is_media(value: Any) -> bool:
    """True if a value is an image, video or audio, or its file name or address."""
    if isinstance(value, str):
        return _MEDIA.search(value) is not None or _DATA.fullmatch(value) is not None
    if isinstance(value, (list, tuple)):  # such as the numbers of a sound or of pixels
        return any(part not in (None, "", {}) and (not isinstance(part, str) or _is_media(part)) for part in value)
    return value not in (None, {}) and not isinstance(value, (bool, int, float))


def refuse_unwanted(row: Row) -> None:
    """Exclude a row that is marked as not to be trained on.

    Raises:
        NothingToLearn: the row is marked so.
        BadRow: a mark is neither true nor false.
    """
    marks = {key: row.peek(key) for key in ROW_MARKS if row.peek(key) not in (None, "") and is_mark(row.peek(key))}
    trained = mark_of(marks, ROW_MARKS, "")
    for key in marks:
        row[key]
    if trained is False:
        raise NothingToLearn("marked not to be trained on", "the row is marked not to be trained on")


def with_thoughts(row: Row, answer: Messages) -> Messages:
    """A single answer together with its thoughts from a column of the row."""
    column = row.first(THOUGHT_COLUMNS)
    if column is None or len(answer) != 1 or column in answer[0] or not isinstance(row.peek(column), str):
        return answer
    return [{**answer[0], column: row[column]}]


def _is_structured(value: Any) -> bool:
    """True for a list or an object, and for text that is one in JSON or begins like one: a Python list that was
    printed, broken JSON. Other text may begin with a bracket too."""
    if not isinstance(value, str):
        return isinstance(value, (list, tuple, dict))
    if _BRACKETED.match(value):
        return True
    try:
        return isinstance(json.loads(value), (list, dict))
    except (ValueError, RecursionError):
        return False


def _may_be_tools(value: Any) -> bool:
    """True if a value may be tool schemas: a list or an object, but not a list of plain texts, which are names of
    tools."""
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
    """The prompt with the row's earlier turns before it (Alpaca's pairs of question and answer, or messages), unless
    the conversation begins with them already."""
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
