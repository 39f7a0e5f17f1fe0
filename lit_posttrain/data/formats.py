"""Turn a record of any usual shape into an `Example`: a conversation, or plain text.

Which columns a file has is decided once, from its first record (`recognise`); every later record is checked against
that decision. A record that cannot be used raises `BadRow`, and the caller decides whether that ends the run or is
counted.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.messages import BadRow, as_messages, as_tools, check_order, kind
from lit_posttrain.data.sources import Record
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Role

_CONVERSATION = ("messages", "conversations", "conversation")
_INPUT = ("input", "context")


@dataclass
class Columns:
    """Names of the columns to use where they are not recognised by themselves.

    Args:
        prompt: Column with the prompt: a string, or a list of messages. Needs `completion`.
        completion: Column with the answer to train on: a string, or a list of messages.
        messages: Column with a whole conversation: a list of {role, content} or {from, value}.
        text: Column with plain text, every token of which is trained on.
        system: Column with a system prompt of the row's own. A column called `system` is found without this.
        tools: Column with the row's tool schemas (a list, or JSON text). A column called `tools` is found without this.
    """

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    system: str | None = None
    tools: str | None = None


@dataclass(slots=True)
class Example:
    """What a record holds, as either a conversation, plain text, or both.

    messages: the conversation, roles normalised; empty for plain text.
    prompt_turns: how many leading messages are the prompt. The record says so where it has a prompt of its own;
        in a whole conversation they are the turns before the first assistant turn.
    tools: tool schemas for the chat template.
    text: (prompt, completion) as plain strings, for tokenizers without a chat template; ("", text) for plain text;
        None where only a chat template can say what the conversation looks like.
    """

    messages: list[dict[str, Any]]
    prompt_turns: int = 0
    tools: list[Any] | None = None
    text: tuple[str, str] | None = None


@dataclass(slots=True)
class Labelled:
    """Examples that share a prompt and become one tree, each with the role and label of its response. A lone prompt, of
    which no response is known, has no labels. record: see `Tree.record`."""

    examples: list[Example]
    labels: list[tuple[Role, float]]
    record: str = ""


@dataclass(frozen=True)
class Format:
    """How the records of one file become examples. `name` is what the audit calls it."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Example]
    system: str = "system"
    tools: str = "tools"

    def example(self, data: Mapping[str, Any], system_prompt: str | None = None) -> Example:
        """The example in a record; `system_prompt` is put before a conversation that has no system turn.

        Raises:
            BadRow: a column is missing or mis-typed, or the conversation cannot be one.
        """
        check_needs(self.needs, data)
        example = self.read(data)
        if not example.messages:
            return example
        own = _text(data, self.system, "") if data.get(self.system) is not None else ""
        if (system := own or system_prompt) and example.messages[0]["role"] not in ("system", "developer"):
            example.messages.insert(0, {"role": "system", "content": system})
            example.prompt_turns += 1
            example.text = None
        example.tools = as_tools(data.get(self.tools), self.tools)
        check_order(example.messages)
        return example


def check_needs(needs: Sequence[str], data: Mapping[str, Any]) -> None:
    """Raise BadRow where a record lacks a column of its file's first record."""
    for column in needs:
        if column not in data:
            raise BadRow(
                "missing column",
                f"no column `{column}` (found: {', '.join(data)}); every row of a file needs the columns "
                "of its first row",
            )


def recognise(record: Record, columns: Columns | None = None) -> Format:
    """Decide by the columns of a file's first record, or by the columns that the user named.

    Raises:
        PostTrainError: a named column does not exist, or no known set of columns does.
    """
    data, named = record.data, columns or Columns()
    require_columns(record, named)
    found = _named(record, named) or _by_columns(data)
    if found is None and {"chosen", "rejected"} <= set(data):
        prompt = next((column for column in ("prompt", "instruction", "question") if column in data), None)
        side = f"--data.columns.prompt {prompt} --data.columns.completion chosen" if prompt else ""
        side = "--data.columns.messages chosen" if not prompt and isinstance(data["chosen"], list) else side
        raise PostTrainError(
            f"{record.file}:{record.line}: preferences (chosen, rejected), no conversations: configs/dpo.yaml and "
            f"configs/reward.yaml learn from those{f'; to imitate the better side, pass {side}' if side else ''}"
        )
    if found is None:
        raise PostTrainError(
            f"{record.file}:{record.line}: columns not recognised: {', '.join(data)}; name them with "
            "--data.columns.prompt X --data.columns.completion Y (or columns.messages, columns.text)"
        )
    name, needs, read = found
    needs += tuple(column for column in (named.system, named.tools) if column)
    return Format(name, needs, read, named.system or "system", named.tools or "tools")


def require_columns(record: Record, named: Any) -> None:
    """Check the columns that the user named, the values of a dataclass, against a file's first record.

    Raises:
        PostTrainError: for one that does not exist.
    """
    for option, value in vars(named).items():
        for column in value if isinstance(value, list) else [value] if value is not None else []:
            if column not in record.data:
                close = difflib.get_close_matches(column, record.data, n=1)
                hint = f"; did you mean `{close[0]}`?" if close else ""
                raise PostTrainError(
                    f"{record.file}:{record.line}: no column `{column}` (--data.columns.{option}); "
                    f"the columns are {', '.join(record.data)}{hint}"
                )


_Found = tuple[str, tuple[str, ...], Callable[[Mapping[str, Any]], Example]]


def _named(record: Record, named: Columns) -> _Found | None:
    kinds = [named.messages, named.text, named.prompt or named.completion]
    if sum(kind is not None for kind in kinds) > 1 or (named.prompt is None) != (named.completion is None):
        raise PostTrainError(
            f"{record.file}: --data.columns wants `prompt` with `completion`, or `messages`, or `text`: name one"
        )
    if named.messages is not None:
        return _conversation(named.messages)
    if named.text is not None:
        return _plain(named.text)
    if named.prompt is not None and named.completion is not None:
        return _pair(f"{named.prompt}/{named.completion}", named.prompt, named.completion)
    return None


def _by_columns(data: Mapping[str, Any]) -> _Found | None:
    for column in _CONVERSATION:
        if isinstance(data.get(column), (list, str)):
            return _conversation(column)
    for prompt, answers in (
        ("prompt", ("completion", "response")),
        ("instruction", ("output", "response", "completion")),
        ("question", ("answer", "response")),
    ):
        answer = next((column for column in answers if column in data), None)
        if prompt in data and answer:
            extra = () if prompt == "prompt" else _INPUT
            name = "/".join((prompt, *(column for column in extra if column in data), answer))
            # a bare question needs something between itself and its answer where no chat template provides it
            return _pair(name, prompt, answer, extra, separator="\n\n" if extra else "")
    return _plain("text") if "text" in data else None


def _plain(column: str) -> _Found:
    def read(data: Mapping[str, Any]) -> Example:
        return Example([], text=("", _text(data, column, "text")))

    return column, (column,), read


def _conversation(column: str) -> _Found:
    def read(data: Mapping[str, Any]) -> Example:
        messages = as_messages(data[column], column)
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
        return Example(messages, prompt_turns=first)

    return column, (column,), read


def _pair(name: str, prompt: str, answer: str, extra: tuple[str, ...] = (), separator: str = "") -> _Found:
    """`extra`: columns that are added to a row's prompt where the row has them."""

    def read(data: Mapping[str, Any]) -> Example:
        asked, answered = data[prompt], data[answer]
        if isinstance(asked, str) and isinstance(answered, str):
            _text(data, answer, "completion")
            asked = "\n\n".join([asked, *(_text(data, column, "") for column in extra if data.get(column))])
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            return Example(messages, prompt_turns=1, text=(asked + separator, answered))
        before = _side(asked, prompt, "user")
        return Example([*before, *_side(answered, answer, "assistant")], prompt_turns=len(before))

    return name, (prompt, answer), read


def _side(value: Any, column: str, role: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return as_messages([{"role": role, "content": value}], column)
    if not isinstance(value, list):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a string or a list of messages; mend it")
    return as_messages(value, column)


def _text(data: Mapping[str, Any], column: str, called: str) -> str:
    """A string column; `called` names it in "empty ..." where it must not be empty."""
    value = data[column]
    if not isinstance(value, str):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a string; mend it")
    if called and not value.strip():
        raise BadRow(f"empty {called}", f"`{column}` is empty; there is nothing to train on")
    return value
