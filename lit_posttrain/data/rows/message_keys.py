"""The roles and keys of messages, by all the names that data sets give them."""

from __future__ import annotations

from typing import Any

Messages = list[dict[str, Any]]  # normalised: roles as below, string content

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
    "ai": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
SYSTEM = frozenset({"system", "developer"})
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value", "text")
REASONING = ("reasoning_content", "thinking", "reasoning")
# keys of a normalised message: False if it is marked as not to be trained on, its unused keys, and notes for the audit
MARK, UNUSED, NOTES = "__train__", "__unused__", "__notes__"
CALL_ROLES = ("function_call", "tool_call")  # roles whose content is a call


def is_message(value: object) -> bool:
    """True if a value can only be a message: it has a known role, and content or a tool call."""
    if not isinstance(value, dict):
        return False
    said = value.get(key_of(value, ROLE_KEYS))
    keys = (*CONTENT_KEYS, "tool_calls", "function_call")
    return isinstance(said, str) and said.strip().lower() in ROLES and any(key in value for key in keys)


def key_of(raw: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if raw.get(name) is not None), names[0])
