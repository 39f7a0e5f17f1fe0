"""The messages that a cell of a preference set holds: a list of them, JSON text, a transcript, or one string."""

from __future__ import annotations

import json
import re
from typing import Any

from lit_posttrain.data.messages import ROLES, BadRow, NoPreference, as_messages, kind

_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_SPEAKER = re.compile(r"\s*(Human|Assistant):")


def conversation(value: Any, column: str, role: str = "assistant") -> list[dict[str, Any]]:
    """Messages, of a list of them (also as JSON text), of a transcript, or of one string that `role` said."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        value = _messages_in(value)
    if isinstance(value, list):
        return _said(value, column)
    if not isinstance(value, str):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a string or a list of messages; mend it")
    if role == "user" and _SPEAKER.match(value):  # a prompt may lack the first empty lines
        return _transcript(f"\n\n{value.lstrip()}", column, prompt=True)
    if _TURN.match(value):
        return _transcript(value, column)
    return _said([{"role": role, "content": value}], column)


def _messages_in(text: str) -> Any:
    """Messages of JSON text, or the text itself: a response may be JSON."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text
    speakers = isinstance(found, list) and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in found)
    return found if speakers else text


def _transcript(text: str, column: str, prompt: bool = False) -> list[dict[str, Any]]:
    r"""`\n\nHuman: ... \n\nAssistant: ...` as messages. A prompt may end with the name of who is to answer."""
    parts = _TURN.split(text)[1:]
    turns = [(ROLES[speaker.lower()], said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    if prompt and turns[-1] == ("assistant", ""):
        turns.pop()
    if not all(said for _, said in turns[:-1]):
        raise NoPreference("empty turn", f"a turn in the middle of `{column}` is empty; mend or remove the row")
    return _said([{"role": role, "content": said} for role, said in turns], column)


def _said(messages: list[Any], column: str) -> list[dict[str, Any]]:
    """Messages whose last one may turn out to be empty: a response that nobody can prefer for what it says."""
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    text = last.get("content", last.get("value"))
    speaker = ROLES.get(str(last.get("role", last.get("from"))).strip().lower())
    if speaker == "assistant" and isinstance(text, str) and not text.strip() and not last.get("tool_calls"):
        raise NoPreference("empty response", f"`{column}` is or ends with an empty response: there is nothing to score")
    return as_messages(messages, column)
