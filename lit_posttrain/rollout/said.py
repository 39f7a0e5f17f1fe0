"""From a completion's tokens to what it says, apart from what was thought before.

Some models mark thoughts with special tokens, such as the channels of gpt-oss. Decoding leaves special tokens out,
which would run thoughts and answer together. How they are marked is found by rendering a turn with a thought.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.render.rendered import special_tokens
from lit_posttrain.data.render.rendering import Conversation, Renderer
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.engine import Completion
from lit_posttrain.tokenizer import Tokenizer

# no template writes them by itself
_THOUGHT, _ANSWER = "Because7of4that", "Therefore3it2is"
_KNOWN = (("<|channel>thought\n", "<channel|>"),)  # Gemma 4, whose first templates write no thoughts


@dataclass(frozen=True)
class Said:
    """text: what a completion says, white space and all, without special tokens such as its end: what rewards judge,
    and what is shown and kept. thought: what is marked with special tokens as thought before; empty for most models."""

    text: str
    thought: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """It as the assistant's turn."""
        thought = {"reasoning_content": self.thought} if self.thought else {}
        return {"role": "assistant", "content": self.text, **thought}


class SaidBy:
    """Reads completions of one tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        names = sorted(special_tokens(tokenizer).values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        thoughts, alone = _marks(tokenizer)
        self._thoughts = [marks for marks in thoughts if self._special.search("".join(marks))]
        self._alone = alone if self._special.search(alone) else ""
        self._again = self._between_messages()

    def __call__(self, completion: Completion) -> Said:
        """A completion as a message."""
        text = str(self._tokenizer.decode(completion.tokens, skip_special_tokens=True))
        if not self._thoughts and not self._alone:
            return Said(text)
        whole = str(self._tokenizer.decode(completion.tokens, skip_special_tokens=False))
        if self._again:
            return self._messages(whole)
        for opening, between in self._thoughts:
            if whole.startswith(opening) and (between in whole or opening):
                return self._thought_first(whole.removeprefix(opening), between)
        if self._alone and whole.startswith(self._alone):
            return Said(self._bare(whole.removeprefix(self._alone)))
        return Said(text)

    def _between_messages(self) -> str:
        """The text that begins another message of the assistant in the same completion, as in gpt-oss between thoughts,
        text between them, and the answer; empty if answers have no header of their own."""
        for _, between in self._thoughts if self._alone else ():
            end = self._special.match(between)
            again = between[end.end() :].removesuffix(self._alone) if end and between.endswith(self._alone) else ""
            if self._special.match(again):
                return again
        return ""

    def _messages(self, whole: str) -> Said:
        """The thoughts and the rest of a completion that consists of messages with headers."""
        *_, begin = self._special.finditer(self._alone)  # ends every header
        openings = [opening for opening, _ in self._thoughts if opening]
        thoughts, said = [], []
        for message in whole.split(self._again):
            opening = next((opening for opening in openings if message.startswith(opening)), None)
            if opening is not None:
                thoughts.append(self._bare(message.removeprefix(opening)))
                continue
            header, found, words = message.partition(begin[0])
            name = self._bare(header)
            # a plain word names a channel; what is longer says which function is called
            told = found and (header + found == self._alone or re.fullmatch(r"\w+", name))
            said.append(self._bare(words) if told else name + self._bare(words))
        return Said("\n\n".join(filter(None, said)), "\n\n".join(filter(None, thoughts)))

    def _thought_first(self, text: str, between: str) -> Said:
        """A thought, and what is said behind it. One that is not closed as usual ends with the next special token."""
        thought, closed, answer = text.partition(between)
        found = None if closed else self._special.search(text)
        if found:
            thought, answer = text[: found.start()], text[found.start() :]
        return Said(self._bare(answer), self._bare(thought))

    def _bare(self, text: str) -> str:
        return self._special.sub("", text)


def _marks(tokenizer: Tokenizer) -> tuple[list[tuple[str, str]], str]:
    """The texts before and behind a thought, of every known kind, and the text before an answer without one."""
    if tokenizer.chat_template is None:
        return [], ""
    renderer = Renderer(tokenizer)
    said = _turn(renderer, {"content": _ANSWER, "reasoning_content": _THOUGHT})
    alone = _turn(renderer, {"content": _ANSWER}).partition(_ANSWER)[0]
    opening, thought, behind = said.partition(_THOUGHT)
    between, answer, _ = behind.partition(_ANSWER)
    return [*([(opening, between)] if thought and answer and between else []), *_KNOWN], alone


def _turn(renderer: Renderer, said: dict[str, Any]) -> str:
    """An answer as the template renders it behind the prompt; empty if it is not rendered behind it."""
    try:
        talk = renderer.spelled(Conversation([{"role": "user", "content": "Why?"}, {"role": "assistant", **said}]))
        prompt, whole = renderer.text(talk.first(1), prompt=True), renderer.text(talk)
    except (BadRow, PostTrainError):
        return ""
    return whole.removeprefix(prompt) if whole.startswith(prompt) else ""
