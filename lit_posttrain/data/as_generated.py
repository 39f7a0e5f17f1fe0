"""One assistant turn as the model would produce it: behind exactly the prompt that generation gives it.

Most templates write a turn as its prompt followed by the answer. Some do not: the prompt opens a block of reasoning
that a turn without reasoning lacks (`<think>`), or closes an empty one (`</think>`, Gemma's empty channel), or the
turns before are written otherwise once an answer follows. Trained as rendered, the model would learn to answer a
prompt that it never meets. What is trained instead is the prompt of generation, then what the rendered turn has behind
its own prompt. A turn in which that cannot be told apart for certain is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.bad_rows import BadRow
from lit_posttrain.data.rendering import said_after_thinking, thought_of

_TAG_LENGTH = 80
TAG = r"<[^<>\s]{1,60}>|\[[A-Z_/]{2,30}\]"
_OPENING = re.compile(r"<([^<>\s/|]{1,60})>$")
_ANCHOR = 8


@dataclass(frozen=True)
class Turn:
    """An assistant turn with everything before it. The answer is `text[start:end]`; what stands behind it closes
    nothing and is not trained on.

    generated: the prompt of generation stands in the place of what the template renders there. cut: character
    `start + i` of the text is character `cut + i` of the rendered turn; None where the answer is not a piece of it.
    marks: spans of the text that a template with `{% generation %}` marks in the answer; None for other templates.
    """

    text: str
    start: int
    end: int
    generated: bool = False
    cut: int | None = None
    marks: tuple[tuple[int, int], ...] | None = None


class Joiner:
    """Puts prompts and rendered turns together. control: matches a special token of the tokenizer."""

    def __init__(self, control: re.Pattern[str]) -> None:
        self._whole = re.compile(f"{control.pattern}|{TAG}|\\w+")
        self._tag = re.compile(f"{control.pattern}|{TAG}")

    def join(self, prompt: str, turn: str, message: dict[str, Any], before: dict[str, Any] | None) -> Turn:
        """The turn behind its prompt. message: what the turn says. before: the last message of the prompt.

        Raises:
            BadRow: the prompt is not what the rendered turn goes on from, and no other joint is the only one.
        """
        if turn.startswith(prompt):
            return Turn(turn, len(prompt), len(turn), cut=len(prompt))
        at = self.parting(prompt, turn)
        start = self._words_at(turn, message)
        if (raw := self._unwritten(prompt[at:], turn[at:], message)) is not None:
            return Turn(prompt + raw, len(prompt), len(prompt) + len(raw), generated=True)
        if start is None:
            raise self._refusal(prompt, turn, at)
        cut = self._cut(prompt, turn, message, before, at, start)
        return Turn(prompt + turn[cut:], len(prompt), len(prompt) + len(turn) - cut, generated=True, cut=cut)

    def _cut(
        self, prompt: str, turn: str, message: dict[str, Any], before: dict[str, Any] | None, at: int, start: int
    ) -> int:
        """Where in the rendered turn the answer begins, given where turn and prompt part, and where its words begin."""
        words = [word for word in (message["content"], message["content"].strip(), thought_of(message)) if word]
        words_first = turn.startswith(tuple(words), start)
        if words_first and self._end_alike(prompt, turn[:start]):
            return start  # right before the words stands what the prompt ends with
        asked = before["content"].strip() if before else ""
        here = prompt.rfind(asked) + len(asked) if asked else 0
        if here > at:  # what was said before is rendered otherwise in front of an answer
            there = turn.rfind(prompt[here - len(asked) : here + _ANCHOR], 0, start)
            if there < 0:
                raise self._refusal(prompt, turn, at)
            there += len(asked)
            if turn.startswith(prompt[here:], there):
                return there + len(prompt) - here
            shift = there - here
            at = here + self.parting(prompt[here:], turn[there:])
        else:
            shift = 0
        for tag in self._tag.finditer(turn, at + shift, start):
            if prompt.endswith(turn[at + shift : tag.end()]):
                return tag.end()  # the end of a thought that the prompt has opened and closed
        if set(self._tag.findall(prompt[at:])) & self._tags_of_thought(turn, at + shift, start, message):
            raise self._refusal(prompt, turn, at, shift)  # it has closed what the turn's thought stands in
        gap = turn[at + shift : start]
        # a word in this place is a speaker's name, or the like, for which the prompt has its own
        return start if words_first and (not gap.strip() or gap[0].isalnum()) else min(at + shift, start)

    def parting(self, prompt: str, turn: str) -> int:
        """The character at which two texts part: the beginning of a tag or a word rather than one within it."""
        at = common(prompt, turn)
        while True:
            low = max(at - _TAG_LENGTH, 0)
            inside = [
                low + found.start()
                for text in (prompt, turn)
                for found in self._whole.finditer(text[low : at + _TAG_LENGTH])
                if low + found.start() < at < low + found.end()
            ]
            if not inside:
                return at
            at = min(inside)

    def _end_alike(self, a: str, b: str) -> bool:
        """Whether two texts end with the same whole tag or word, white space and marks aside."""
        alike = common(a[::-1], b[::-1])
        ends = [text[-alike - _TAG_LENGTH :] for text in (a, b)]
        return all(any(len(end) - m.start() <= alike for m in self._whole.finditer(end)) for end in ends)

    def _unwritten(self, surplus: str, rest: str, message: dict[str, Any]) -> str | None:
        """The answer where the prompt opens a thought (`<think>`) and the template leaves the message's thought out
        of the rendered turn: the thought, closed, the content, and the end that the template gives it."""
        opening = _OPENING.search(surplus.strip())
        content: str = message["content"].strip()
        last = said_after_thinking(content)
        if not opening or "tool_calls" in message or not last or rest.count(last) != 1:
            return None
        closing = f"</{opening[1]}>"
        if content.startswith(opening[0]) and closing in content and content not in rest:
            said = content[len(opening[0]) :].lstrip()
        elif (thought := thought_of(message)) and thought not in rest and closing not in rest:
            said = f"{thought}\n{closing}\n\n{last}"
        else:
            return None
        return said + rest[rest.index(last) + len(last) :]

    def _tags_of_thought(self, turn: str, at: int, start: int, message: dict[str, Any]) -> set[str]:
        """The tags before a turn's words, and the one that closes its thought."""
        tags, thought = set(self._tag.findall(turn[at:start])), thought_of(message)
        place = turn.find(thought, at) if thought else -1
        closing = self._tag.match(turn[place + len(thought) :].lstrip()) if place >= 0 else None
        return tags | {closing[0]} if closing else tags

    def _words_at(self, turn: str, message: dict[str, Any]) -> int | None:
        """Where the rendered turn begins to say what the message does; None where it says none of it."""
        content = message["content"] if message["content"] in turn else message["content"].strip()
        names = [str(call["function"].get("name")) for call in message.get("tool_calls", ())]
        words = [thought_of(message), content, said_after_thinking(content), *names]
        return min((at for word in words if word and (at := turn.rfind(word)) >= 0), default=None)

    @staticmethod
    def _refusal(prompt: str, turn: str, at: int, shift: int = 0) -> BadRow:
        here, there = slice(max(at - 20, 0), at + 30), slice(max(at + shift - 20, 0), at + shift + 30)
        return BadRow(
            "prompt differs",
            f"the chat template renders the prompt as ...{prompt[here]!r} and the conversation with the answer as "
            f"...{turn[there]!r}: training would show the model another prompt than use does",
        )


def common(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a.startswith(b[:middle]) else (low, middle - 1)
    return low
