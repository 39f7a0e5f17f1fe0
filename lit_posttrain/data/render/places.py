"""Where a template writes a message: found by rendering the conversation again with a mark in the message, not by
searching for its words, which may occur anywhere (`hi` in `<think>`, `end` in `<|im_end|>`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lit_posttrain.data.render.rendering import Conversation, Renderer
from lit_posttrain.data.render.thoughts import pieces, thought_key
from lit_posttrain.data.rows.bad_rows import BadRow

Message = dict[str, Any]
Mark = Callable[[Message], Message]
CallMark = Callable[[Message, str, str], Message]
_WORD, _CALL = "\ue000", "\ue001"  # of the private use area: no text holds them


class Places:
    """Finds messages in what one renderer makes of a conversation."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def start(self, talk: Conversation) -> tuple[int, bool] | None:
        """The character at which the last message begins in the text, and True if it begins with its words rather than
        the name of a tool; None if none of it is written."""
        at, behind = self._first_change(talk, len(talk.messages) - 1, _STARTS)
        return self._only_words(talk) if behind is None else (at, not behind.startswith(_CALL))

    def _only_words(self, talk: Conversation) -> tuple[int, bool] | None:
        """Where the words of the last message are, if they occur once after the message before it: for templates that
        accept no other words."""
        text, words = self._renderer.text(talk), talk.messages[-1]["content"].strip()
        before = self.end_of(talk, len(talk.messages) - 2) or 0
        return (text.find(words, before), True) if words and text.count(words, before) == 1 else None

    def thinks(self, talk: Conversation) -> bool:
        """True if the text holds the thought of the last message."""
        return self._first_change(talk, len(talk.messages) - 1, [_in_the_thought])[1] is not None

    def end(self, talk: Conversation, prompt: bool = False) -> int | None:
        """The character after the words of the last message, or after the name of the last tool that it calls (or its
        last argument, if the template accepts no other name); None if none is written. prompt: in the generation
        prompt."""
        return self.end_of(talk, len(talk.messages) - 1, prompt)

    def end_of(self, talk: Conversation, k: int, prompt: bool = False) -> int | None:
        """As `end`, of message k."""
        if k < 0:
            return None
        at, behind = self._first_change(talk, k, _ENDS, prompt)
        return None if behind is None else at

    def _first_change(
        self, talk: Conversation, k: int, marks: Sequence[Mark], prompt: bool = False
    ) -> tuple[int, str | None]:
        """The first character that a mark in message k changes, and the other text from there on. marks: tried in
        order, until the template refuses none."""
        text = self._renderer.text(talk, prompt)
        for mark in marks:
            messages = [*talk.messages[:k], mark(talk.messages[k]), *talk.messages[k + 1 :]]
            try:
                other = self._renderer.text(replace(talk, messages=messages), prompt)
            except BadRow:
                continue
            at = common(text, other)
            return at, other[at:] or None
        return 0, None


def _at_the_start(message: Message, call_marked: CallMark) -> Message:
    made, found = _in_the_thought(message), pieces(message["content"])
    if found.answer:
        at = found.rest_at - len(message["content"])  # there may be a mark before it
        made["content"] = made["content"][:at] + _WORD + made["content"][at:]
    if found.lead:
        made["content"] = _WORD + made["content"]
    if "tool_calls" in message:
        made["tool_calls"] = [call_marked(call, _CALL, "") for call in message["tool_calls"]]
    return made


def _in_the_thought(message: Message) -> Message:
    made, found = dict(message), pieces(message["content"])
    if key := thought_key(message):
        made[key] = _WORD + message[key]
    if found.thought:
        made["content"] = message["content"][: found.thought_at] + _WORD + message["content"][found.thought_at :]
    return made


def _at_the_end(message: Message, call_marked: CallMark) -> Message:
    if not message.get("tool_calls"):
        return {**message, "content": message["content"] + _WORD}
    *before, last = message["tool_calls"]
    return {**message, "tool_calls": [*before, call_marked(last, "", _CALL)]}


def _named(call: Message, before: str, behind: str) -> Message:
    return {**call, "function": {**call["function"], "name": f"{before}{call['function'].get('name')}{behind}"}}


def _argued(call: Message, before: str, behind: str) -> Message:
    arguments = call["function"].get("arguments")
    texts = [key for key, value in arguments.items() if isinstance(value, str)] if isinstance(arguments, dict) else []
    if not texts:
        return call
    key = texts[0] if before else texts[-1]
    made = {**arguments, key: f"{before}{arguments[key]}{behind}"}
    return {**call, "function": {**call["function"], "arguments": made}}


# in this order: some templates look up the name of a call among the tools, and refuse one with a mark
_STARTS: Sequence[Mark] = (partial(_at_the_start, call_marked=_named), partial(_at_the_start, call_marked=_argued))
_ENDS: Sequence[Mark] = (partial(_at_the_end, call_marked=_named), partial(_at_the_end, call_marked=_argued))


def common(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a.startswith(b[:middle]) else (low, middle - 1)
    return low
