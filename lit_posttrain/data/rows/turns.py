"""The messages that a cell of a preference set or of a set of prompts holds: a list of them, JSON text, a transcript,
or one string.

Text is read as more than text only where nothing else can be meant, and the audit says of how many rows it was.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.message_keys import CONTENT_KEYS, REASONING, ROLE_KEYS, ROLES, is_message
from lit_posttrain.data.rows.messages import as_messages
from lit_posttrain.data.rows.values import fault_of, not_text

_JSON = re.compile(r"\s*\[\s*\{")
_ROLE = f"['\"](role|from)['\"]\\s*:\\s*['\"]({'|'.join(ROLES)})['\"]"
_MESSAGE = re.compile(rf"\s*\[\s*\{{\s*({_ROLE}|['\"]content['\"]\s*:)", re.IGNORECASE)
_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_OPENING = re.compile(r"\s*Human:")
TRANSCRIPT, JSON_TEXT = "read as Human/Assistant transcripts", "read as messages in JSON text"
MESSAGES_AS_TEXT = "with an answer that looks like messages in JSON text, and is read as text"


def conversation(value: object, column: str, notes: list[str], role: str = "assistant") -> list[dict[str, Any]]:
    """Messages, of a list of them (also as JSON text), of a transcript, or of one string that `role` said. notes: gets
    a line where text was read as more than text.

    Raises:
        BadRow: what can be no conversation, or text that can only be messages and is no JSON.
        NothingToLearn: an empty response, or an empty turn within a transcript.
    """
    value = from_json(value, column, notes)
    if is_message(value):
        value = [value]
    if isinstance(value, list):
        return _said(value, column, prompt=role == "user")
    if not isinstance(value, str):
        raise not_text(value, f"`{column}`", "a string or a list of messages")
    text = value.replace("\r\n", "\n")
    if _is_transcript(text, role):
        notes.append(TRANSCRIPT)
        return _transcript(text if text.startswith("\n\n") else f"\n\n{text.lstrip()}", column, prompt=role == "user")
    return _said([{"role": role, "content": value}], column, prompt=role == "user")


def _is_transcript(text: str, role: str) -> bool:
    """Whether text is a dialogue: it opens with an empty line and a speaker, and the assistant speaks in it. A prompt
    may lack either, but not both; a prompt that only begins with the word is what somebody asked."""
    answered = "Assistant" in _TURN.findall(text)
    opened = _TURN.match(text)
    if role == "user":
        return (opened is not None and opened[1] == "Human") or (answered and _OPENING.match(text) is not None)
    return opened is not None and answered


def from_json(value: object, column: str, notes: list[str]) -> Any:
    """Messages of JSON text, if it can be nothing else: a response may be JSON, with whatever keys. Anything else stays
    as it is.

    Raises:
        BadRow: text that can only be messages and is no JSON, such as a Python list that was printed.
    """
    if not isinstance(value, str) or not _JSON.match(value):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        if not _is_meant_as_messages(value, error):
            return value
        raise BadRow(
            "no JSON",
            f"`{column}` begins like a list of messages and is not valid JSON ({fault_of(error)}); write it with "
            "json.dumps",
        ) from error
    if not isinstance(found, list) or not all(map(is_message, found)):
        return value
    notes.append(JSON_TEXT)
    return found


def _is_meant_as_messages(text: str, error: ValueError | RecursionError) -> bool:
    """Whether text that is no JSON is a list of messages from its beginning to its end: one that Python printed, or one
    that is broken or cut off. Messages that other text follows are what somebody said. error: of the JSON."""
    if not _MESSAGE.match(text):
        return False
    if isinstance(error, json.JSONDecodeError):
        if error.msg == "Extra data":
            return False
        if error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()):
            return True
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text.rstrip().endswith("]")
    return isinstance(found, list) and all(map(is_message, found))


def _transcript(text: str, column: str, prompt: bool) -> list[dict[str, Any]]:
    r"""`\n\nHuman: ... \n\nAssistant: ...` as messages. A prompt may end with the name of who is to answer."""
    parts = _TURN.split(text)[1:]
    turns = [(ROLES[speaker.lower()], said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    if prompt and turns[-1] == ("assistant", ""):
        turns.pop()
    if not prompt and not all(said for _, said in turns[:-1]):
        raise NothingToLearn("empty turn", f"a turn in the middle of `{column}` is empty; mend or remove the row")
    return _said([{"role": role, "content": said} for role, said in turns], column, prompt)


def _said(messages: list[Any], column: str, prompt: bool) -> list[dict[str, Any]]:
    """Messages whose last one may turn out to be empty: a response that nobody can prefer for what it says, or, of a
    prompt, one that is still to come."""
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    text = next((last[key] for key in CONTENT_KEYS if last.get(key) is not None), None)
    speaker = ROLES.get(str(next((last[key] for key in ROLE_KEYS if last.get(key)), "")).strip().lower())
    more = any(last.get(key) for key in ("tool_calls", "function_call", *REASONING))
    if speaker == "assistant" and isinstance(text, str) and not text.strip() and not more:
        if prompt:
            return _said(messages[:-1], column, prompt)
        raise NothingToLearn(
            "empty response", f"`{column}` is or ends with an empty response: there is nothing to score"
        )
    return as_messages(messages, column, learned=not prompt)
