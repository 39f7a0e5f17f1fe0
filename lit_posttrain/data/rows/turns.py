"""Messages from a column of a preference or prompt data set: a list of messages, JSON text, a transcript, or one
string.

Text is read as anything else only if nothing else can be meant, and the audit counts the rows in which it was.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.message_keys import CONTENT_KEYS, REASONING, ROLE_KEYS, ROLES, Messages, is_message
from lit_posttrain.data.rows.messages import as_messages
from lit_posttrain.data.rows.values import fault_of, not_text

_JSON = re.compile(r"\s*\[\s*\{")
_ROLE = f"['\"](role|from)['\"]\\s*:\\s*['\"]({'|'.join(ROLES)})['\"]"
_MESSAGE = re.compile(rf"\s*\[\s*\{{\s*({_ROLE}|['\"]content['\"]\s*:)", re.IGNORECASE)
_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_OPENING = re.compile(r"\s*Human:")
_MARKED = re.compile(r"<extra_id_1>(User|Assistant)\n")  # as NVIDIA writes prompts of several turns
TRANSCRIPT, JSON_TEXT = "read as Human/Assistant transcripts", "read as messages in JSON text"
MARKED_TURNS = "with a prompt of several turns, read by its marks <extra_id_1>"
MESSAGES_AS_TEXT = "with an answer that looks like messages in JSON text, and is read as text"


def conversation(value: object, column: str, notes: list[str], role: str = "assistant") -> Messages:
    """Messages from a list of them (or its JSON text), from a transcript, or from one string said by `role`. notes:
    receives a line if text was read as anything else.

    Raises:
        BadRow: the value cannot be a conversation, or is text that can only be messages and is not valid JSON.
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
    if role == "user" and _is_marked(text):
        notes.append(MARKED_TURNS)
        return _said(_marked_turns(text), column, prompt=True)
    if _is_transcript(text, role):
        notes.append(TRANSCRIPT)
        return _transcript(text if text.startswith("\n\n") else f"\n\n{text.lstrip()}", column, prompt=role == "user")
    return _said([{"role": role, "content": value}], column, prompt=role == "user")


def _is_transcript(text: str, role: str) -> bool:
    """True if text is a dialogue: it opens with an empty line and a speaker, and the assistant speaks in it. A prompt
    may lack one of the two; a prompt that merely begins with the word is plain text."""
    answered = "Assistant" in _TURN.findall(text)
    opened = _TURN.match(text)
    if role == "user":
        return (opened is not None and opened[1] == "Human") or (answered and _OPENING.match(text) is not None)
    return opened is not None and answered


def from_json(value: object, column: str, notes: list[str]) -> Any:
    """Messages from JSON text that can be nothing else: a response may itself be JSON, with any keys. Any other value
    is returned unchanged.

    Raises:
        BadRow: text that can only be messages and is not valid JSON, such as a Python list that was printed.
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
    """True if text that is not valid JSON is a list of messages from beginning to end: printed by Python, broken or cut
    off. Messages followed by other text are content. error: the error of the JSON parser."""
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


def _transcript(text: str, column: str, prompt: bool) -> Messages:
    r"""`\n\nHuman: ... \n\nAssistant: ...` as messages. A prompt may end with the name of the next speaker."""
    parts = _TURN.split(text)[1:]
    turns = [(ROLES[speaker.lower()], said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    if prompt and turns[-1] == ("assistant", ""):
        turns.pop()
    if not prompt and not all(said for _, said in turns[:-1]):
        raise NothingToLearn("empty turn", f"a turn in the middle of `{column}` is empty; mend or remove the row")
    return _said([{"role": role, "content": said} for role, said in turns], column, prompt)


def _is_marked(text: str) -> bool:
    """True if the marks of a prompt make the turns of a conversation: user and assistant by turns, the user first and
    last. A prompt that quotes a mark is plain text."""
    if "<extra_id_1>" not in text:
        return False
    speakers = _MARKED.findall(text)
    if not text[: text.index("<extra_id_1>")].strip():
        speakers = speakers[1:] if speakers[:1] == ["User"] else []
    return bool(speakers) and speakers == ["Assistant", "User"] * (len(speakers) // 2)


def _marked_turns(text: str) -> Messages:
    """A prompt that begins with the user's words, and names the speaker of every later turn."""
    first, *rest = _MARKED.split(text)
    speakers, said = ["User", *rest[::2]], [first, *rest[1::2]]
    turns = [{"role": ROLES[who.lower()], "content": words.strip()} for who, words in zip(speakers, said, strict=True)]
    return turns if first.strip() else turns[1:]


def _said(messages: list[Any], column: str, prompt: bool) -> Messages:
    """Messages whose last one may be empty: an empty response has no preference; in a prompt an empty last turn is the
    answer to come, and is dropped."""
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
