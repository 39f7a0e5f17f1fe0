"""One assistant turn as the model would generate it: after exactly the prompt that generation uses.

Most templates render a turn as its generation prompt followed by the answer. Some do not: the generation prompt opens a
block of reasoning that a turn without reasoning lacks (`<think>`), or closes an empty one (`</think>`, Gemma's empty
channel), or earlier turns are rendered differently once an answer follows. Trained as rendered, the model would learn
to answer a prompt that it never sees. What is trained instead is the generation prompt, then what the rendered turn has
after its own prompt, and the turn's thought if the generation prompt opens one and the template drops it. A turn for
which this cannot be decided for certain is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.render.places import Places, common
from lit_posttrain.data.render.rendering import NAME_A_TEMPLATE, Conversation
from lit_posttrain.data.render.thoughts import closes_thought, opened_thought, pieces, thought_of
from lit_posttrain.data.rows.bad_rows import BadRow

_TAG_LENGTH = 80
TAG = r"<[^<>\s]{1,60}>|\[[A-Z_/]{2,30}\]"


@dataclass(frozen=True)
class Turn:
    """An assistant turn with everything before it. The answer is `text[start:end]`; what follows it is not trained
    on.

    generated: the generation prompt replaces what the template renders there. cut: character `start + i` of the text is
    character `cut + i` of the rendered turn; None if the answer is not a piece of it. thought_added: the template
    leaves out the turn's thought, and it was added. marks: spans within the answer that a template marks with `{%
    generation %}`; None for other templates.
    """

    text: str
    start: int
    end: int
    generated: bool = False
    cut: int | None = None
    thought_added: bool = False
    marks: tuple[tuple[int, int], ...] | None = None


class Joiner:
    """Joins generation prompts and rendered turns. control: matches a special token of the tokenizer."""

    def __init__(self, places: Places, control: re.Pattern[str]) -> None:
        self._places = places
        self._whole = re.compile(f"{control.pattern}|{TAG}|\\w+")
        self._tag = re.compile(f"{control.pattern}|{TAG}")

    def join(self, prompt: str, turn: str, talk: Conversation) -> Turn:
        """The turn after its generation prompt. talk: ends with the turn.

        Raises:
            BadRow: the rendered turn does not continue the generation prompt, and no single way to join them exists.
        """
        alike = turn.startswith(prompt)
        cut = len(prompt) if alike else self._cut(prompt, turn, talk)
        said = self._with_thought(prompt, turn[:cut], turn[cut:], talk)
        if said is not None:
            return Turn(prompt + said, len(prompt), len(prompt) + len(said), generated=True, thought_added=True)
        return Turn(prompt + turn[cut:], len(prompt), len(prompt) + len(turn) - cut, generated=not alike, cut=cut)

    def _cut(self, prompt: str, turn: str, talk: Conversation) -> int:
        """Where the answer begins in the rendered turn."""
        at, found = self.parting(prompt, turn), self._places.start(talk)
        if found is None:
            raise BadRow(
                "not rendered",
                f"the chat template writes nothing of turn {len(talk.messages)} (assistant); {NAME_A_TEMPLATE}",
            )
        start, words_first = found
        if words_first and self._end_alike(prompt, turn[:start]):
            return start  # right before the words stands what the prompt ends with
        k, shift = len(talk.messages) - 1, 0
        here = self._places.end(talk.first(k), prompt=True) if k else None
        if here is not None and here > at:  # what was said before is rendered differently before an answer
            there = self._places.end_of(talk, k - 1)
            if there is None or there > start:
                raise self._refusal(prompt, turn, at)
            if turn.startswith(prompt[here:], there):
                return there + len(prompt) - here
            shift = there - here
            at = here + self.parting(prompt[here:], turn[there:])
        for tag in self._tag.finditer(turn, at + shift, start):
            if prompt.endswith(turn[at + shift : tag.end()]):
                return tag.end()  # the end of a thought that the prompt has opened and closed
        if set(self._tag.findall(prompt[at:])) & self._tags_of_thought(turn, at + shift, start, talk.messages[-1]):
            raise self._refusal(prompt, turn, at, shift)  # it has closed what the turn's thought stands in
        gap = turn[at + shift : start]
        # a word in this place is a speaker's name, or the like, for which the prompt has its own
        return start if words_first and (not gap.strip() or gap[0].isalnum()) else min(at + shift, start)

    def parting(self, prompt: str, turn: str) -> int:
        """The character at which two texts begin to differ, moved back to the beginning of a tag or word."""
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
        """True if two texts end with the same whole tag or word, white space and marks aside."""
        alike = common(a[::-1], b[::-1])
        ends = [text[-alike - _TAG_LENGTH :] for text in (a, b)]
        return all(any(len(end) - m.start() <= alike for m in self._whole.finditer(end)) for end in ends)

    def _with_thought(self, prompt: str, before: str, said: str, talk: Conversation) -> str | None:
        """The answer with its thought, which may be empty, if the generation prompt opens one (`<think>`) and the
        template leaves the message's out. before, said: the rendered turn before the answer, and from there on."""
        tags = opened_thought(prompt)
        if tags is None:
            return None
        message = talk.messages[-1]
        thought, content = thought_of(message), pieces(message["content"])
        if not (content.answer or message.get("tool_calls")):
            return None
        opening, closing = tags
        space = prompt[len(prompt.rstrip()) :]
        if not thought:
            if closing in said:
                return None
            if closing not in content.closing:
                opened = not before.rstrip().endswith(opening) and closes_thought(closing)
                return f"\n{closing}\n\n{said.lstrip()}" if opened else None
            given = common(space, content.closing) if opening in message["content"] else 0
            return content.closing[given:] + said.lstrip()
        closed = said.lstrip().startswith(closing)
        if not closed and before.rstrip().endswith(opening):
            return None  # a speaker's tag, as both have it
        if self._places.thinks(talk):
            return None
        if closed:
            return thought + space + said.lstrip()
        joint = content.closing if closing in content.closing else f"\n{closing}\n\n"
        return thought + joint + said.lstrip()

    def _tags_of_thought(self, turn: str, at: int, start: int, message: dict[str, Any]) -> set[str]:
        """The tags before a turn's words, and the one that closes its thought, if the turn begins with a thought."""
        tags, thought = set(self._tag.findall(turn[at:start])), thought_of(message)
        thinks = thought and turn.startswith(thought, start)
        closing = self._tag.match(turn[start + len(thought) :].lstrip()) if thinks else None
        return tags | {closing[0]} if closing else tags

    @staticmethod
    def _refusal(prompt: str, turn: str, at: int, shift: int = 0) -> BadRow:
        here, there = slice(max(at - 20, 0), at + 30), slice(max(at + shift - 20, 0), at + shift + 30)
        return BadRow(
            "prompt differs",
            f"the chat template renders the prompt as ...{prompt[here]!r} and the conversation with the answer as "
            f"...{turn[there]!r}: training would show the model another prompt than inference does",
        )
