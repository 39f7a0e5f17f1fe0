"""What a chat template silently leaves out of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lit_posttrain.data.render.as_generated import Turn
from lit_posttrain.data.render.rendering import (
    NAME_A_TEMPLATE,
    Conversation,
    Renderer,
)
from lit_posttrain.data.render.thoughts import thought_of
from lit_posttrain.data.render.written import Piece, absent
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError


class LeftOut:
    """Compares conversations with what one template renders."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def of(self, talk: Conversation, turns: Mapping[int, Turn], prompt: bool = False) -> list[str]:
        """What is left out, in words for the audit; empty for most conversations.

        turns: the trained turns, by index. prompt: the conversation is a prompt that is to be answered.

        Raises:
            BadRow: a trained turn calls tools, and the template does not write all of its calls.
        """
        found = self._of_earlier_turns(talk, turns, prompt)
        thoughtless = [k for k, turn in turns.items() if self._lacks_thought(talk.first(k + 1), turn)]
        if thoughtless:
            found.append("thoughts")
        found += self._others_turns(talk, max(turns, default=len(talk.messages)), prompt)
        if talk.tools and self._same(talk, replace(talk, tools=None)):
            found.append("tools")
        return found

    def _lacks_thought(self, talk: Conversation, turn: Turn) -> bool:
        """True if the last turn, which is trained on, lacks its thought.

        Raises:
            BadRow: it lacks a call.
        """
        k, message = len(talk.messages) - 1, talk.messages[-1]
        if "tool_calls" not in message and not thought_of(message):
            return False
        absent = self._absent(talk, [k], False)
        if missing := len({call for _, kind, call in absent if kind == "call"}):
            calls = len(message["tool_calls"])
            what = "the tool calls" if missing == calls else f"{missing} of {calls} tool calls"
            raise BadRow("not rendered", f"the chat template leaves out {what} of turn {k + 1}; {NAME_A_TEMPLATE}")
        return any(kind == "thought" for _, kind, _ in absent) and not turn.thought_added

    def _of_earlier_turns(self, talk: Conversation, turns: Mapping[int, Turn], prompt: bool) -> list[str]:
        """What is left out of tool results and of answers that are not trained on. Missing thoughts of these are
        usual."""
        roles = {k: m["role"] for k, m in enumerate(talk.messages) if m["role"] in ("tool", "assistant")}
        shown = [k for k in roles if k not in turns]
        if turns and turns[max(turns)].generated:  # the turn is trained behind the prompt, which may show more
            talk, prompt = talk.first(max(turns)), True
        absent = {(roles[k], kind) for k, kind, _ in self._absent(talk, shown, prompt)} if shown else set()
        told = {
            "tool results": ("tool", "words"),
            "words of earlier turns": ("assistant", "words"),
            "tool calls of earlier turns": ("assistant", "call"),
        }
        return [what for what, which in told.items() if which in absent]

    def _others_turns(self, talk: Conversation, end: int, prompt: bool) -> list[str]:
        """The turns before turn `end`, except the assistant's, of which nothing is written."""
        text = self._renderer.text(talk, prompt)
        shown = [
            k
            for k, m in enumerate(talk.messages[:end])
            if m["role"] not in ("assistant", "tool") and (words := m["content"].strip()) and words not in text
        ]
        if not shown:
            return []
        lost = absent(
            talk.messages, shown, lambda made: self._renderer.text(replace(talk, messages=made), prompt), False
        )
        return [f"turn {k + 1} ({talk.messages[k]['role']})" for k, kind, _ in sorted(lost) if kind == "words"]

    def _absent(self, talk: Conversation, places: Sequence[int], prompt: bool) -> set[Piece]:
        """The pieces of these messages that the template does not write."""
        return absent(talk.messages, places, lambda made: self._renderer.text(replace(talk, messages=made), prompt))

    def _same(self, talk: Conversation, other: Conversation) -> bool:
        try:
            return self._renderer.text(talk) == self._renderer.text(other)
        except (BadRow, PostTrainError):  # no template for conversations without tools
            return False
