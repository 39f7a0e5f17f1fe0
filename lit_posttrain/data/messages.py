"""What a conversation is: messages with known roles and string content, in an order that can be.

Everything that data sets write differently is made alike here, or refused with `BadRow`.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_SYSTEM = frozenset({"system", "developer"})


class BadRow(Exception):
    """A record that cannot be used. reason: a few words to count it under. The message says what was found and the
    remedy, without the place, which the caller knows."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoPreference(BadRow):
    """A record of preference data that says nothing: always counted and listed, never an error."""


def as_messages(value: Any, column: str) -> list[dict[str, Any]]:
    """Messages with normalised roles and string content, from role/content, from/value, or JSON text of either.

    Raises:
        BadRow: anything that is not a conversation; `column` names it in the message.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(value, column)
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a list of messages; mend it")
    if not value:
        raise BadRow("no turns", f"`{column}` is an empty list; there is nothing to train on")
    return [_message(message, f"{column}[{index}]") for index, message in enumerate(value)]


def _message(raw: dict[str, Any], where: str) -> dict[str, Any]:
    role_key, content_key = ("role", "content") if "role" in raw else ("from", "value")
    said = raw.get(role_key)
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise BadRow("unknown role", f"{where}: role {said!r}; roles are system, user, assistant and tool")
    # Arrow fills the keys that only some messages have with nulls
    kept = {k: v for k, v in raw.items() if v is not None and k not in (role_key, content_key)}
    if "tool_calls" in kept and not kept["tool_calls"]:
        del kept["tool_calls"]
    elif "tool_calls" in kept:
        kept["tool_calls"] = _tool_calls(kept["tool_calls"], where)
    content = _content(raw.get(content_key), where, optional="tool_calls" in kept)
    if said == "function_call" and "tool_calls" not in kept:
        kept["tool_calls"], content = _tool_calls(_json(content, where), where), ""
    if role == "assistant" and not content.strip() and "tool_calls" not in kept:
        raise BadRow("empty completion", f"{where}: the assistant's turn is empty; there is nothing to train on")
    return {"role": role, "content": content, **kept}


def _content(value: Any, where: str, optional: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    parts = value if isinstance(value, list) else [None]
    texts = [p.get("text") if isinstance(p, dict) and p.get("type", "text") == "text" else None for p in parts]
    if not all(isinstance(text, str) for text in texts):
        raise BadRow("wrong type", f"{where}: content is {kind(value)}, not a string; only text can be trained on")
    return "".join(texts)  # type: ignore[arg-type]  # all are str: checked above


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Templates write arguments with `tojson`: text that is JSON already would be quoted a second time."""
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) for call in calls):
        raise BadRow("wrong type", f"{where}: tool_calls is not a list of objects; mend it")
    made = []
    for call in calls:
        function = dict(call["function"]) if isinstance(call.get("function"), dict) else dict(call)
        if isinstance(function.get("arguments"), str):
            function["arguments"] = _json(function["arguments"], f"{where} arguments")
        extra = {k: v for k, v in call.items() if v is not None} if "function" in call else {}
        made.append({"type": "function", **extra, "function": function})
    return made


def as_tools(value: Any, column: str) -> list[Any] | None:
    """Tool schemas from a list or its JSON text; None where there are none."""
    if isinstance(value, str):
        value = _json(value, column) if value.strip() else None
    if value is not None and not isinstance(value, list):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a list of tool schemas; mend it")
    return value or None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow("wrong type", f"{where}: not valid JSON ({error.msg} column {error.colno}); mend it") from error


def check_order(messages: list[dict[str, Any]], answered: bool = True) -> None:
    """Raise BadRow where no conversation runs like this. Templates may be stricter, and say so themselves. answered:
    whether the assistant must have had a turn."""
    roles = [m["role"] for m in messages]
    said = ", ".join(roles)
    if answered and "assistant" not in roles:
        raise BadRow("no assistant turn", f"no assistant turn (roles: {said}); there is nothing to train on")
    first = next(i for i, role in enumerate(roles) if role not in _SYSTEM)
    turns = roles[first:]
    if not _SYSTEM.isdisjoint(turns):
        raise BadRow("role order", f"a system turn after the first turn (roles: {said}); move it to the top")
    if roles[0] == "assistant":
        raise BadRow("role order", "the conversation starts with the assistant; put the user's turn before it")
    if "tool" in turns and any(
        role == "tool" and before not in ("assistant", "tool") for before, role in pairwise(["", *turns])
    ):
        raise BadRow("role order", f"a tool turn that no assistant turn called (roles: {said}); mend it")


def kind(value: Any) -> str:
    """What a value is, in words for a message."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"{value!r}"[:40])
