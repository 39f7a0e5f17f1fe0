"""Answers that are drawn a few prompts at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lit_posttrain.cli.commands.part import Part
from lit_posttrain.data.modules.prompt_files import SourcedPrompt
from lit_posttrain.inference.chat import Answer

Draw = Callable[[Sequence[SourcedPrompt], int], Sequence[Sequence[Answer]]]
_LOOKED_AT = 16  # prompts after which answers that are all cut off are told of


class Answers:
    """The answers to numbered prompts. Answers that an earlier command has kept are not drawn again."""

    def __init__(self, draw: Draw, part: Part) -> None:
        """
        Args:
            draw: Answers some prompts; the second argument is the number of the first one.
            part: Keeps them.
        """
        self.draw, self.part = draw, part
        self._cut_off = self._all = 0
        self._told = False

    def __call__(self, asked: Sequence[SourcedPrompt], first: int) -> list[list[Answer]]:
        """The answers to some prompts; first: the number of the first one. Prompts are asked in their order."""
        have = [[Answer(**one) for one in said] for said in self.part.known[first : first + len(asked)]]
        if len(have) < len(asked):
            fresh = [list(said) for said in self.draw(asked[len(have) :], first + len(have))]
            self.part.keep([[asdict(one) for one in said] for said in fresh])
            have += fresh
        self._look(have)
        return have

    def _look(self, answers: Sequence[Sequence[Answer]]) -> None:
        """Warn once if all answers so far are cut off."""
        self._all += sum(len(said) for said in answers)
        self._cut_off += sum(one.finish_reason == "length" for said in answers for one in said)
        enough = len(self.part.known) >= min(_LOOKED_AT, self.part.total)
        if not self._told and enough and self._cut_off == self._all:
            longest = max(len(one.tokens) for said in answers for one in said)
            self._told = True
            self.part.say(f"all {self._all} answers so far were cut off at {longest} tokens; raise --max_new_tokens?")


def answered(
    conversations: Sequence[SourcedPrompt], answers: Answers, together: int
) -> Iterator[tuple[SourcedPrompt, list[Answer]]]:
    """Yields each conversation with its answers as they are drawn."""
    for first in range(0, len(conversations), together):
        some = conversations[first : first + together]
        yield from zip(some, answers(some, first), strict=True)


def row_of(one: SourcedPrompt, answers: Sequence[Answer], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a conversation in the output. origin: what every response says of where it comes from."""
    return one.row(
        prompt=one.messages[0]["content"] if len(one.messages) == 1 else one.messages,
        responses=[{**_response(answer), **origin} for answer in answers],
    )


def _response(answer: Answer) -> dict[str, Any]:
    thought = {"reasoning_content": answer.thought} if answer.thought else {}
    return {"text": answer.text, **thought, "finish_reason": answer.finish_reason, "logprob": answer.logprob}
