"""Normalise messages: known roles and string content.

What data sets write differently becomes alike here, or is refused with `BadRow`. Keys that are not read here stay in
the message, for the chat template.
"""

from __future__ import annotations

from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.marks import DETAILS, MESSAGE_MARKS, detail_of, mark_of
from lit_posttrain.data.rows.message_checks import says
from lit_posttrain.data.rows.message_keys import (
    CALL_ROLES,
    CONTENT_KEYS,
    MARK,
    NOTES,
    REASONING,
    ROLE_KEYS,
    ROLES,
    UNUSED,
    Messages,
    key_of,
)
from lit_posttrain.data.rows.tool_schemas import tool_calls
from lit_posttrain.data.rows.values import as_json, kind, not_text

JOINED = "with messages of several text parts, which are joined with nothing between them"
_TEXT_PARTS = ("text", "input_text", "output_text")


def as_messages(value: object, column: str, learned: bool = True) -> Messages:
    """Messages with normalised roles and string content, from role/content, from/value, or JSON text of either.
    learned: the assistant's turns are trained on, so they must have content.

    Raises:
        BadRow: for anything that is not a conversation; `column` names it in the message.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = as_json(value, column)
    if isinstance(value, dict):
        raise BadRow("wrong type", f"`{column}` is {of_columns(value) or kind(value)}, not a list of messages; mend it")
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a list of messages; mend it")
    if not value:
        raise BadRow("no turns", f"`{column}` is an empty list, not a conversation; fill or remove the row")
    made: Messages = []
    for index, raw in enumerate(value):
        message = _message(raw, f"{column}[{index}]", learned)
        called = index > 0 and all(m.get(key_of(m, ROLE_KEYS)) in CALL_ROLES for m in (raw, value[index - 1]))
        if called and made[-1].get(MARK) == message.get(MARK):  # parallel calls, a message each
            made[-1]["tool_calls"] += message["tool_calls"]
        else:
            made.append(message)
    return made


def by_message(value: object) -> Any:
    """A list of messages made from an object with a list per key, as `datasets` stores them; any other value
    unchanged."""
    if not isinstance(value, dict) or not any(isinstance(value.get(key), list) for key in ROLE_KEYS):
        return value
    lists = list(value.values())
    if not all(isinstance(part, list) and len(part) == len(lists[0]) for part in lists):
        return value
    return [dict(zip(value, parts, strict=True)) for parts in zip(*lists, strict=True)]


def of_columns(value: object) -> str:
    """A description, with the remedy, of an object that holds a column of a table; empty for any other value."""
    if not isinstance(value, dict) or not value or [*value] != [str(i) for i in range(len(value))]:
        return ""
    return 'a column of a whole table (an object with the numbers of rows as keys: write orient="records" in pandas)'


def _message(raw: dict[str, Any], where: str, learned: bool) -> dict[str, Any]:
    role_key, content_key = key_of(raw, ROLE_KEYS), key_of(raw, CONTENT_KEYS)
    said = raw.get(role_key)
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if said is None:
        raise BadRow(
            "no role",
            f"{where} has no `role` (its keys are {', '.join(raw) or 'none'}); a message has role and content, or from "
            "and value: rename its keys",
        )
    if role is None:
        raise BadRow("unknown role", f"{where}: role {said!r}; roles are system, user, assistant and tool")
    marked = _marked(raw, role, where)
    taken = {role_key, content_key, *MESSAGE_MARKS, *DETAILS}
    kept = {key: value for key, value in raw.items() if value is not None and key not in taken}
    optional = any(key in kept for key in REASONING)
    for key in REASONING:
        if str(kept.get(key, "")).strip() in ("", "[]", "{}"):  # an empty thought is none
            kept.pop(key, None)
    if "function_call" in kept:  # OpenAI's way before there were several calls a turn
        if kept.get("tool_calls"):
            raise BadRow("wrong type", f"{where} has both function_call and tool_calls; keep tool_calls")
        kept["tool_calls"] = kept.pop("function_call")
    if not kept.get("tool_calls"):
        kept.pop("tool_calls", None)
    else:
        kept["tool_calls"] = tool_calls(kept["tool_calls"], where)
    optional = optional or "tool_calls" in kept
    if content_key not in raw and not optional:
        raise BadRow(
            "no content", f"{where} has no `content` (its keys are {', '.join(raw)}); rename the one with the text"
        )
    texts, thoughts, unused = _content(raw.get(content_key), where, optional)
    content = "".join(texts)
    if thoughts and not any(kept.get(key) for key in REASONING):
        kept["reasoning_content"] = thoughts
    if said in CALL_ROLES and "tool_calls" not in kept:
        kept["tool_calls"], content = tool_calls(as_json(content, where), where), ""
    made = {"role": role, "content": content, **kept}
    if learned and role == "assistant" and not says(made):
        raise BadRow("empty completion", f"{where}: the assistant's turn is empty; there is nothing to train on")
    if marked is False:
        made[MARK] = False
    elif marked and role != "assistant":
        unused.append(f"message.{key_of(raw, tuple(MESSAGE_MARKS))} of {role} turns")
    if role != "assistant":
        unused += [f"message.{key} of {role} turns" for key in DETAILS if raw.get(key)]
    if unused:
        made[UNUSED] = unused
    if sum(map(bool, texts)) > 1:
        made[NOTES] = [JOINED]
    return made


def _marked(raw: dict[str, Any], role: str, where: str) -> bool | None:
    whole = mark_of(raw, MESSAGE_MARKS, f"{where}: ")
    if raw.get("mask") is not None:
        raise BadRow(
            "mark",
            f"{where}: `mask` is trained on in some tools and left out in others; rename it to `train`, true or false",
        )
    content = raw.get(key_of(raw, CONTENT_KEYS))
    detail = detail_of(raw, len(content) if isinstance(content, str) else 0, f"{where}: ", role != "assistant")
    return whole if detail is None else False


def _content(value: object, where: str, optional: bool) -> tuple[list[str], str, list[str]]:
    """The texts of a message's content, the thoughts in it, and unused keys of its parts. optional: content may be
    missing."""
    if isinstance(value, str):
        return [value], "", []
    if value is None and optional:
        return [], "", []
    if not isinstance(value, list):
        raise not_text(value, f"{where}: content")
    texts: list[str] = []
    thoughts: list[str] = []
    unused: list[str] = []
    for given in value:
        part = {"text": given} if isinstance(given, str) else given if isinstance(given, dict) else {"type": None}
        key = part.get("type", "text")
        thinks = key in ("thinking", "reasoning")
        words = part.get(str(key) if thinks else "text") if thinks or key in _TEXT_PARTS else None
        if not isinstance(words, str):
            found = f"a part of type {key!r}" if isinstance(key, str) else "a list of other things than text"
            raise BadRow("wrong type", f"{where}: content is {found}, not a string; only text can be trained on")
        (thoughts if thinks else texts).append(words)
        rest = (name for name in part if name not in ("type", "text", key) and part[name] is not None)
        unused += [f"message.content[].{name}" for name in rest]
    return texts, "".join(thoughts), unused
