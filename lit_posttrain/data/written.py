"""What of a conversation a template writes: every piece gets a mark, and the text shows which marks came through. The
words themselves prove nothing, for they may stand in the text for another reason."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Literal

from lit_posttrain.data.thoughts import pieces, thought_key

Message = dict[str, Any]
Kind = Literal["words", "thought", "call"]


class Marked:
    """Messages with a mark in all that those of `places` say; all messages where it is None.

    messages: with their marks.
    """

    def __init__(self, messages: list[Message], places: Container[int] | None = None) -> None:
        self._marks: dict[str, tuple[int, Kind, int]] = {}
        self.messages = [self._message(k, m) if places is None or k in places else m for k, m in enumerate(messages)]

    def absent(self, text: str) -> set[tuple[int, Kind, int]]:
        """The pieces that a text of these messages lacks: message, kind, and which of its calls."""
        return {piece for mark, piece in self._marks.items() if mark not in text}

    def _mark(self, k: int, kind: Kind, call: int = 0) -> str:
        mark = f"Zq{len(self._marks)}qZ"
        self._marks[mark] = k, kind, call
        return mark

    def _message(self, k: int, message: Message) -> Message:
        made, found = dict(message), pieces(message["content"])
        content: str = message["content"]
        if found.answer:
            made["content"] = content.rstrip() + self._mark(k, "words")
        if found.thought:
            end = found.thought_at + len(found.thought)
            made["content"] = content[:end] + self._mark(k, "thought") + made["content"][end:]
        if key := thought_key(message):
            made[key] = message[key] + self._mark(k, "thought")
        if "tool_calls" in message:
            made["tool_calls"] = [self._call(k, i, call) for i, call in enumerate(message["tool_calls"])]
        return made

    def _call(self, k: int, i: int, call: dict[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        function["name"] = f"{function.get('name')}{self._mark(k, 'call', i)}"
        if isinstance(function.get("arguments"), dict):
            function["arguments"] = self._argument(k, i, function["arguments"])
        return {**call, "function": function}

    def _argument(self, k: int, i: int, value: Any) -> Any:
        if isinstance(value, str):
            return value + self._mark(k, "call", i)
        if isinstance(value, dict):
            return {key: self._argument(k, i, part) for key, part in value.items()}
        return [self._argument(k, i, part) for part in value] if isinstance(value, list) else value
