"""Turn a record of any usual shape into an `Example`: a conversation, or plain text.

Which columns a file has is decided once, from its first record (`recognise`); every later record is checked against
that decision. A record that cannot be used raises `BadRow`, and the caller decides whether that ends the run or is
counted.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lit_posttrain.data.files.sources import Record
from lit_posttrain.data.formats.comparison import begins_with
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.formats.prompt_texts import behind_prompt, empty_prompt, string, with_added
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.beside import SYSTEM_COLUMNS, Beside, refuse_media, refuse_unwanted, with_thoughts
from lit_posttrain.data.rows.kinds import ANSWERS, CONVERSATION, INPUT, PROMPT, answers_itself, asks, compared, tokens
from lit_posttrain.data.rows.message_checks import check_order, says
from lit_posttrain.data.rows.message_keys import ROLE_KEYS, is_message
from lit_posttrain.data.rows.messages import as_messages, by_message, of_columns
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import MESSAGES_AS_TEXT, conversation, from_json
from lit_posttrain.data.rows.values import kind, not_text
from lit_posttrain.errors import PostTrainError


@dataclass
class Columns:
    """Names of the columns to use where they are not recognised by themselves.

    Args:
        prompt: Column with the prompt: a string, or a list of messages. Needs `completion`.
        completion: Column with the answer to train on: a string, or messages, which may begin with the prompt.
            Without `prompt` the column of the prompt is recognised.
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


@dataclass
class Parts:
    """What the columns of a shape hold. text: as `Example` has it."""

    prompt: list[dict[str, Any]] = field(default_factory=list)
    response: list[dict[str, Any]] = field(default_factory=list)
    text: tuple[str, str] | None = None


@dataclass(frozen=True)
class Format:
    """How the records of one file become examples. `name` is what the audit calls it."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Row], Parts]
    system: str | None = None
    tools: str | None = None

    def example(self, data: Mapping[str, Any], system_prompt: str | None = None, marks: bool = True) -> Example:
        """The example in a record; `system_prompt` is put before a conversation that has no system turn. marks: whether
        a mark may leave the record out.

        Raises:
            BadRow: a column is missing or mis-typed, or the conversation cannot be one.
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
        PostTrainError: a named column does not exist, or the file is something else than conversations.
    """
    data, named = Row(record.data), columns or Columns()
    require_columns(record, named)
    found = _named(record, named)
    if found is None:
        found = _by_columns(data)
        other, lone = compared(data), asks(data) or tokens(data)
        if other and (found is None or _is_prompt_only(data, found, other[0])):
            raise PostTrainError(f"{record.file}:{record.line}: not conversations but {other[1]}{_imitated(data)}")
        if is_message(record.data) and not lone and (found is None or found[1] == ("text",)):
            raise PostTrainError(
                f"{record.file}:{record.line}: a row is a single message ({', '.join(data)}), not a conversation; join "
                "the messages of each conversation in a column `messages`, or pass --data.columns.text for plain text"
            )
    if found is None:
        if lone:
            more = _texts_beside(data)
            lone = (
                lone
                if not more
                else (f"{lone}; if one of {', '.join(more)} is the answer, pass --data.columns.completion {more[0]}")
            )
            raise PostTrainError(f"{record.file}:{record.line}: not conversations but {lone}")
        said = no_conversation(data) or f"columns not recognised: {', '.join(data)}; {_remedy(data)}"
        raise PostTrainError(f"{record.file}:{record.line}: {said}")
    name, needs, read = found
    needs += tuple(column for column in (named.system, named.tools) if column)
    return Format(name, needs, read, named.system, named.tools)


def _texts_beside(data: Mapping[str, Any]) -> list[str]:
    """Columns of text that may be answers: not those that are known to be something else."""
    known = {*PROMPT, *INPUT, *SYSTEM_COLUMNS, "id", "uuid"}
    return [name for name, value in data.items() if name not in known and isinstance(value, str) and value.strip()]


def _remedy(data: Mapping[str, Any]) -> str:
    """What to do with columns that are not recognised."""
    (only, *others) = data or [""]
    if not others and (mark := next((mark for mark in (";", "\t", "|") if mark in only), None)):
        return f"the header is one column: its separator may be {mark!r}; write commas, or tabs in a .tsv file"
    if options := _spelled_otherwise(data):
        return f"pass {options}"
    return "name them with --data.columns.prompt X --data.columns.completion Y (or columns.messages, columns.text)"


def _spelled_otherwise(data: Mapping[str, Any]) -> str:
    """The options that name columns which are known but for capital letters; empty where there are none."""
    known = {name.lower(): name for name in data}
    for prompt, answers in ANSWERS.items():
        answer = next((column for column in answers if column in known), None)
        if prompt in known and answer:
            return f"--data.columns.prompt {known[prompt]} --data.columns.completion {known[answer]}"
    options = {**dict.fromkeys(CONVERSATION, "messages"), "text": "text"}
    return next((f"--data.columns.{options[name]} {known[name]}" for name in options if name in known), "")


def no_conversation(data: Mapping[str, Any]) -> str:
    """What a column of conversations is that holds none, with the remedy; empty where there is no such column."""
    column = next((name for name in CONVERSATION if isinstance(data.get(name), dict) or [*data] == [name]), None)
    if column is None or isinstance(by_message(data[column]), (list, str)):
        return ""
    found = of_columns(data[column]) or kind(data[column])
    return f"`{column}` is {found}, not a list of messages; mend it"


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


_Found = tuple[str, tuple[str, ...], Callable[[Row], Parts]]


def _is_prompt_only(data: Mapping[str, Any], found: _Found, shape: str) -> bool:
    """Whether what looks like a conversation belongs to preference data: the prompt of it, or a response that may be a
    bad one."""
    if shape == "unpaired":
        return True
    if found[1][0] in CONVERSATION:
        return not answers_itself(data)
    return found[1] == ("text",)


def _imitated(data: Mapping[str, Any]) -> str:
    """How to train on the better side alone, where that is one option."""
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


def _is_read_alike(prompt: Any, response: Any) -> bool:
    """Whether texts are no transcripts and no JSON, which preference data reads as messages."""
    notes: list[str] = []
    with suppress(BadRow):
        conversation(prompt, "prompt", notes, "user")
        conversation(response, "chosen", notes)
    return not notes


def _named(record: Record, named: Columns) -> _Found | None:
    kinds = [named.messages, named.text, named.prompt or named.completion]
    if sum(kind is not None for kind in kinds) > 1 or (named.prompt is not None and named.completion is None):
        raise PostTrainError(
            f"{record.file}: --data.columns wants `prompt` with `completion`, or `messages`, or `text`: name one"
        )
    if named.messages is not None:
        return _conversation(named.messages)
    if named.text is not None:
        return _plain(named.text)
    if named.completion is None:
        return None
    if named.prompt is not None:
        return _pair(f"{named.prompt}/{named.completion}", named.prompt, named.completion)
    prompt = next((column for column in PROMPT if column in record.data and column != named.completion), None)
    if prompt is None:
        raise PostTrainError(
            f"{record.file}:{record.line}: no prompt for --data.columns.completion {named.completion}; name its column "
            f"with --data.columns.prompt X (the columns are {', '.join(record.data)})"
        )
    return _asked_and_answered(record.data, prompt, named.completion)


def _asked_and_answered(data: Mapping[str, Any], prompt: str, answer: str) -> _Found:
    """A prompt that was recognised, with its input, and its answer."""
    name = "/".join((prompt, *(column for column in INPUT if column in data and column != answer), answer))
    extra = tuple(column for column in INPUT if column != answer)
    # a bare question needs something between itself and its answer where no chat template provides it
    return _pair(name, prompt, answer, extra, separator="" if prompt == "prompt" else "\n\n")


def _by_columns(data: Mapping[str, Any]) -> _Found | None:
    for column in CONVERSATION:
        if isinstance(data.get(column), (list, str)):
            return _conversation(column)
    for prompt, answers in ANSWERS.items():
        answer = next((column for column in answers if column in data), None)
        if prompt in data and answer:
            return _asked_and_answered(data, prompt, answer)
    return _plain("text") if "text" in data else None


def _plain(column: str) -> _Found:
    def read(row: Row) -> Parts:
        return Parts(text=("", _filled(row[column], column, "text")))

    return column, (column,), read


def _conversation(column: str) -> _Found:
    def read(row: Row) -> Parts:
        messages = as_messages(row[column], column)
        check_order(messages)
        first = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        return Parts(messages[:first], messages[first:])

    return column, (column,), read


def _pair(name: str, prompt: str, answer: str, extra: tuple[str, ...] = (), separator: str = "") -> _Found:
    """`extra`: columns that are added to a row's prompt where the row has them."""

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
    """The answer to a prompt that is text. Messages in JSON text are read as such where they can follow the prompt;
    else they stay text, as somebody may have asked for a dialogue in JSON. The audit says of how many rows either."""
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


def _side(value: Any, column: str, role: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return as_messages([{"role": role, "content": value}], column)
    value = [value] if isinstance(value, dict) and any(key in value for key in ROLE_KEYS) else value
    if not isinstance(value, list):
        raise not_text(value, f"`{column}`", "a string or a list of messages")
    return as_messages(value, column)


def _filled(value: Any, column: str, called: str) -> str:
    """A string that must not be empty; `called` names it then."""
    if not string(value, column).strip():
        raise BadRow(f"empty {called}", f"`{column}` is empty; there is nothing to train on")
    return str(value)
