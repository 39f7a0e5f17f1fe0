"""Turn a record with any of the usual columns into an `Example`: a conversation, or plain text.

The columns of a file are recognised once, from its first record (`recognise`); later records are checked against them.
A record that cannot be used raises `BadRow`, and the caller decides if that ends the run or is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.feedback.lines import is_record
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.columns import ColumnsBeside, check_needs, require_columns
from lit_posttrain.data.formats.conversation_readers import Found, Parts, pair, plain, whole
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.formats.not_conversations import imitated, no_conversation, remedy, texts_beside
from lit_posttrain.data.formats.written import written
from lit_posttrain.data.rows.beside import Beside, refuse_media, refuse_unwanted
from lit_posttrain.data.rows.kinds import ANSWERS, CONVERSATION, INPUT, PROMPT, answers_itself, asks, compared, tokens
from lit_posttrain.data.rows.message_checks import check_order
from lit_posttrain.data.rows.message_keys import is_message
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError


@dataclass
class Columns(ColumnsBeside):
    """Names of the columns to use where they are not recognised by themselves.

    Args:
        prompt: Column with the prompt: a string, or a list of messages. Needs `completion`.
        completion: Column with the answer to train on: a string, or messages, which may begin with the prompt.
            Without `prompt` the column of the prompt is recognised.
        messages: Column with a whole conversation: a list of {role, content} or {from, value}.
        text: Column with plain text, every token of which is trained on.
    """

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Format:
    """How the records of one file become examples. `name` is what the audit calls it."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Row], Parts]
    system: str | None = None
    tools: str | None = None

    def example(self, data: Mapping[str, Any], system_prompt: str | None = None, marks: bool = True) -> Example:
        """The example in a record; `system_prompt` is put before a conversation without a system turn. marks: a mark
        may exclude the record.

        Raises:
            BadRow: a column is missing or has the wrong type, or the messages are not a conversation.
            NothingToLearn: the record is marked as not to be trained on.
        """
        row = Row.of(data)
        check_needs(self.needs, row)
        if marks:
            refuse_unwanted(row)
        parts = self.read(row)
        refuse_media(row)
        if not parts.response:
            return Example([], text=parts.text)
        beside = Beside.named(self.system, self.tools, system_prompt)
        prompt = beside.opened(row, parts.prompt, parts.response)
        around = beside.around(row)
        text = parts.text if len(prompt) == len(parts.prompt) and not around["tools"] else None
        example = Example.of(prompt, parts.response, row, text=text, **around)
        check_order(example.messages)
        return example


def recognise(record: Record, columns: Columns | None = None) -> Format:
    """Decide by the columns of a file's first record, or by the columns that the user named.

    Raises:
        PostTrainError: a named column does not exist, or the file does not hold conversations.
    """
    data, named = Row(record.data), columns or Columns()
    if is_record(record.data) and named == Columns():
        return Format("decisions", ("feedback",), written)
    require_columns(record, named)
    found = _named(record, named)
    if found is None:
        found = _by_columns(data)
        other, lone = compared(data), asks(data) or tokens(data)
        if other and (found is None or _is_prompt_only(data, found, other[0])):
            raise PostTrainError(f"{record.file}:{record.line}: not conversations but {other[1]}{imitated(data)}")
        if is_message(record.data) and not lone and (found is None or found[1] == ("text",)):
            raise PostTrainError(
                f"{record.file}:{record.line}: a row is a single message ({', '.join(data)}), not a conversation; join "
                "the messages of each conversation in a column `messages`, or pass --data.columns.text for plain text"
            )
    if found is None:
        if lone:
            more = texts_beside(data)
            lone = (
                lone
                if not more
                else (f"{lone}; if one of {', '.join(more)} is the answer, pass --data.columns.completion {more[0]}")
            )
            raise PostTrainError(f"{record.file}:{record.line}: not conversations but {lone}")
        said = no_conversation(data) or f"columns not recognised: {', '.join(data)}; {remedy(data)}"
        raise PostTrainError(f"{record.file}:{record.line}: {said}")
    name, needs, read = found
    needs += tuple(column for column in (named.system, named.tools) if column)
    return Format(name, needs, read, named.system, named.tools)


def _is_prompt_only(data: Mapping[str, Any], found: Found, shape: str) -> bool:
    """True if what looks like a conversation belongs to preference data: its prompt, or a response that may be bad."""
    if shape == "unpaired":
        return True
    if found[1][0] in CONVERSATION:
        return not answers_itself(data)
    return found[1] == ("text",)


def _named(record: Record, named: Columns) -> Found | None:
    kinds = [named.messages, named.text, named.prompt or named.completion]
    if sum(kind is not None for kind in kinds) > 1 or (named.prompt is not None and named.completion is None):
        raise PostTrainError(
            f"{record.file}: --data.columns wants `prompt` with `completion`, or `messages`, or `text`: name one"
        )
    if named.messages is not None:
        return whole(named.messages)
    if named.text is not None:
        return plain(named.text)
    if named.completion is None:
        return None
    if named.prompt is not None:
        return pair(f"{named.prompt}/{named.completion}", named.prompt, named.completion)
    prompt = next((column for column in PROMPT if column in record.data and column != named.completion), None)
    if prompt is None:
        raise PostTrainError(
            f"{record.file}:{record.line}: no prompt for --data.columns.completion {named.completion}; name its column "
            f"with --data.columns.prompt X (the columns are {', '.join(record.data)})"
        )
    return _asked_and_answered(record.data, prompt, named.completion)


def _asked_and_answered(data: Mapping[str, Any], prompt: str, answer: str) -> Found:
    """A recognised prompt with its input, and its answer."""
    name = "/".join((prompt, *(column for column in INPUT if column in data and column != answer), answer))
    extra = tuple(column for column in INPUT if column != answer)
    # a bare question needs something between itself and its answer where no chat template provides it
    return pair(name, prompt, answer, extra, separator="" if prompt == "prompt" else "\n\n")


def _by_columns(data: Mapping[str, Any]) -> Found | None:
    for column in CONVERSATION:
        if isinstance(data.get(column), (list, str)):
            return whole(column)
    for prompt, answers in ANSWERS.items():
        answer = next((column for column in answers if column in data), None)
        if prompt in data and answer:
            return _asked_and_answered(data, prompt, answer)
    return plain("text") if "text" in data else None
