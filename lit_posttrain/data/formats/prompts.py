"""Recognise the prompts of a file, and read them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.columns import ColumnsBeside, check_needs, require_columns
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.example import Example, Labelled, bare_text
from lit_posttrain.data.formats.learned import Prompt, ReadPrompt, learned_prompts
from lit_posttrain.data.formats.not_conversations import no_conversation
from lit_posttrain.data.formats.prompt_texts import takes_more, with_added
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.beside import (
    HISTORY,
    SYSTEM_COLUMNS,
    TOOL_COLUMNS,
    Beside,
    refuse_media,
    refuse_unwanted,
)
from lit_posttrain.data.rows.kinds import CONVERSATION, INPUT, PROMPT, RIGHT, guessed
from lit_posttrain.data.rows.message_checks import check_order, says
from lit_posttrain.data.rows.messages import as_messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import conversation
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import PromptRecord

_BESIDE = (*INPUT, *SYSTEM_COLUMNS, *TOOL_COLUMNS, HISTORY)  # what may belong to a prompt, and need not


@dataclass
class PromptColumns(ColumnsBeside):
    """Names of the columns to use where they are not recognised by themselves. Rewards see all columns of a row.

    Args:
        prompt: Column with the prompt: a string, a transcript, or a list of messages. One that ends with words of the
            assistant is continued.
        messages: Column with a conversation; its last assistant turns are left out, they are to be answered anew.
    """

    prompt: str | None = None
    messages: str | None = None


@dataclass(frozen=True)
class PromptReader:
    """Records as prompts. template: as in `PromptData`."""

    name: str
    needs: tuple[str, ...]
    prompt: ReadPrompt
    beside: Beside
    template: str | None = None
    doubt: str = ""

    def read(self, data: Mapping[str, Any]) -> Labelled:
        """The prompt of a record. Rewards see all of its columns.

        Raises:
            BadRow: as `example`.
            NothingToLearn: the record is marked as not to be trained on.
        """
        row = Row(data)
        refuse_unwanted(row)
        example = self.example(row)
        row.read_all()
        record = PromptRecord(example.messages, dict(data), example.tools, example.variables)
        return Labelled([example], [], record.to_json(), row.unread, row.notes)

    def example(self, row: Row) -> Example:
        """The prompt of a row; the columns that are part of it count as read.

        Raises:
            BadRow: the row has no prompt, or something else in its place.
        """
        check_needs(self.needs, row)
        messages = [dict(message) for message in self.prompt(row)]
        refuse_media(row)
        if not messages or not says(messages[-1]):
            raise BadRow("empty prompt", f"`{self.needs[0]}` is empty: nothing is asked; fill or remove the row")
        if self.template is not None:
            last = next((m for m in reversed(messages) if m["role"] == "user"), messages[-1])
            last["content"] = self.template.replace("{prompt}", last["content"])
        prompt, around = self.beside.opened(row, messages), self.beside.around(row)
        example = Example.of(prompt, [], row, text=bare_text(prompt, [], around["tools"]), **around)
        check_order(example.messages, answered=False)
        left = [name for name in _BESIDE if row.first((name,))]
        row.notes += [f"with a column `{name}` that is no part of the prompt" for name in left]
        return example


def prompt_reader(
    record: Record,
    columns: PromptColumns | None = None,
    system_prompt: str | None = None,
    template: str | None = None,
) -> PromptReader:
    """A reader of a file's prompts, by its first record.

    Raises:
        PostTrainError: a named column does not exist, or no column looks like a prompt.
    """
    named = columns or PromptColumns()
    require_columns(record, named)
    beside = Beside.named(named.system, named.tools, system_prompt)
    around = tuple(column for column in (named.system, named.tools) if column)
    name, needs, read = _recognised(record, named)
    return PromptReader(name, (*needs, *around), read, beside, template)


def _recognised(record: Record, named: PromptColumns) -> tuple[str, tuple[str, ...], ReadPrompt]:
    """The name, the columns and the reader of a file's prompts."""
    if named.prompt and named.messages:
        raise PostTrainError(f"{record.file}: --data.columns wants `prompt` or `messages`: name one")
    if named.messages:
        return named.messages, (named.messages,), _unanswered(named.messages)
    if named.prompt:
        return named.prompt, (named.prompt,), _asked(named.prompt, ())
    column = next((name for name in PROMPT if name in record.data), None)
    learned = learned_prompts(record, column)
    if column is not None:
        task = column == "prompt" and learned is None
        judged = task and any(name in record.data for name in RIGHT)
        extra = tuple(name for name in INPUT if not (judged and name == "input"))
        read = _asked(column, extra, task)
        name = "/".join((column, *(name for name in extra if name in record.data)))
        return name, (column,), read if learned is None else learned.prompt(column, read)
    if learned is not None:
        prompt = guessed(Row(record.data)).get("prompt")
        return f"prompts of {learned.name}", learned.needs, learned.prompt(prompt)
    with suppress(PostTrainError):
        whole = recognise(record, Columns())
        if whole.needs[0] in CONVERSATION:
            return f"prompts of {whole.name}", whole.needs, _unanswered(whole.needs[0])
    near = next((name for name in record.data if name.lower() in PROMPT), "X")
    said = no_conversation(record.data) or (
        f"no prompt among the columns {', '.join(record.data)}; name it with --data.columns.prompt {near} (or "
        "columns.messages)"
    )
    raise PostTrainError(f"{record.file}:{record.line}: {said}")


def _asked(column: str, extra: tuple[str, ...], task: bool = False) -> ReadPrompt:
    """extra: columns that are added to the prompt. task: the rows are tasks for a reward, to which an `input` or
    `context` of another type belongs."""

    def read(row: Row) -> Prompt:
        messages = conversation(row[column], column, row.notes, "user")
        if takes_more(messages, row[column]):
            texts = {"input": str, "context": str | list} if task else {}
            added = [name for name in extra if name not in texts or isinstance(row.peek(name), texts[name])]
            messages[-1]["content"] = with_added(messages[-1]["content"], row, added)
        return messages

    return read


def _unanswered(column: str) -> ReadPrompt:
    def read(row: Row) -> Prompt:
        messages = as_messages(row[column], column, learned=False)
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return messages

    return read
