"""The parts of a conversation that a template writes: every part gets a mark, and the text shows which marks came
through. The words themselves prove nothing: they may be in the text for another reason."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, Literal

from lit_posttrain.data.render.thoughts import pieces, thought_key
from lit_posttrain.data.rows.bad_rows import BadRow

Message = dict[str, Any]
Kind = Literal["words", "thought", "call"]
Piece = tuple[int, Kind, int]
_REPLACED = 0xF0000  # the first character of a private use plane: no text holds them


def absent(
    messages: list[Message], places: Container[int], render: Callable[[list[Message]], str], whole: bool = True
) -> set[Piece]:
    """The parts of the messages at `places` that a template does not write: message, kind, and which of its calls.

    whole: truncated words count as absent; otherwise only those of which no character is written. render: renders
    messages; raises BadRow if the template refuses them. It may refuse a mark, for example if it compares the names of
    calls with those of the tools. Then nothing is known about that part, and the other marks are tried without it.
    """

    def of(marks: Sequence[int] | None) -> set[Piece]:
        marked = _Marked(messages, places, marks, whole)
        try:
            return marked.absent(render(marked.messages))
        except BadRow:
            tried = list(range(marked.count)) if marks is None else marks
            half = len(tried) // 2
            return of(tried[:half]) | of(tried[half:]) if half else set()

    return of(None)


class _Marked:
    """Messages with a mark in everything that those at `places` say. marks: the numbers of the marks that are set; all
    for None. whole: words have a mark at their end; otherwise it replaces every character.

    messages: with their marks. count: the number of possible marks.
    """

    def __init__(
        self, messages: list[Message], places: Container[int], marks: Container[int] | None, whole: bool
    ) -> None:
        self.count = 0
        self._set, self._whole = marks, whole
        self._marks: dict[str, Piece] = {}
        self.messages = [self._message(k, m) if k in places else m for k, m in enumerate(messages)]

    def absent(self, text: str) -> set[Piece]:
        """The pieces that a text of these messages lacks."""
        lowered = text.lower()  # some templates change the case of what they write
        return {piece for mark, piece in self._marks.items() if mark not in lowered}

    def _mark(self, k: int, kind: Kind, call: int = 0) -> str:
        number, self.count = self.count, self.count + 1
        if self._set is not None and number not in self._set:
            return ""
        mark = chr(_REPLACED + number) if kind == "words" and not self._whole else f"zq{number}qz"
        self._marks[mark] = k, kind, call
        return mark

    def _message(self, k: int, message: Message) -> Message:
        made, found = dict(message), pieces(message["content"])
        content: str = message["content"]
        if found.answer and (mark := self._mark(k, "words")):
            start = content.find(found.answer, found.rest_at)
            made["content"] = content.rstrip() + mark if self._whole else content[:start] + mark * len(found.answer)
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

    def _argument(self, k: int, i: int, value: object) -> Any:
        if isinstance(value, str):
            return value + self._mark(k, "call", i)
        if isinstance(value, dict):
            return {key: self._argument(k, i, part) for key, part in value.items()}
        return [self._argument(k, i, part) for part in value] if isinstance(value, list) else value
