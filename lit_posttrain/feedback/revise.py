"""Constitutional data (Bai et al. 2022): a response, its critique by a principle, and its revision, round by round.

Departs from the paper in what a round sees: the prompt and the response of the round before, not the earlier critiques,
so that a round fits a small context however many there are; and in that a round whose critique or revision cannot be
used is kept on record and passed over, instead of becoming data.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from lit_posttrain.data.modules.prompt_files import SourcedPrompt, with_answer
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Backend, Call, CallFailed, Messages
from lit_posttrain.judges.constitution import Constitution

CUT_OFF, EMPTY, SAME, FAILED = "was cut off", "is empty", "equals the response", "failed"


@dataclass(frozen=True)
class Round:
    """principle: its name. critique, revision: what the model said, empty if it was not asked. left_out: why the
    revision is not used, empty if it is."""

    principle: str
    critique: str = ""
    revision: str = ""
    left_out: str = ""


@dataclass(frozen=True)
class Chain:
    """A response and its rounds. left_out: why nothing of it becomes data, empty if something does."""

    response: str
    rounds: list[Round] = field(default_factory=list)
    left_out: str = ""

    @property
    def last(self) -> str:
        """The last revision that is used; the response if there is none."""
        return next((one.revision for one in reversed(self.rounds) if not one.left_out), self.response)

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """The chain that `asdict` made this of."""
        return cls(kept["response"], [Round(**one) for one in kept["rounds"]], kept["left_out"])


@dataclass(frozen=True)
class Reviser:
    """Makes chains with one model, which answers, criticises and revises.

    rounds: of every chain. max_tokens: longest reply of each kind. temperature: of all replies. seed: with the prompt's
    number it decides the principles and the sampling.
    """

    backend: Backend
    constitution: Constitution
    rounds: int = 1
    max_tokens: int = 512
    temperature: float = 1.0
    seed: int = 0

    async def chains(self, prompts: Sequence[SourcedPrompt], first: int) -> list[Chain]:
        """The chains of some prompts, in their order. first: number of the first one among all."""
        return list(await asyncio.gather(*(self._chain(one, first + i) for i, one in enumerate(prompts))))

    async def _chain(self, prompt: SourcedPrompt, number: int) -> Chain:
        response, problem = await self._reply(prompt.messages, number, 0)
        rounds: list[Round] = []
        chain = Chain(response, rounds, f"the response {problem}" if problem else "")
        drawn = self.constitution.drawn(self.rounds, self.seed, number)
        shown = [message for talk in self.constitution.examples for message in talk]
        for place in range(0 if problem else self.rounds):
            principle = drawn[place % len(drawn)]
            talk = with_answer(prompt.messages, {"role": "assistant", "content": chain.last})
            asked = [*shown, *talk, {"role": "user", "content": principle.critique}]
            critique, problem = await self._reply(asked, number, 2 * place + 1)
            if problem:
                rounds.append(Round(principle.name, critique, left_out=f"the critique {problem}"))
                continue
            answered = [{"role": "assistant", "content": critique}, {"role": "user", "content": principle.revision}]
            revision, problem = await self._reply([*asked, *answered], number, 2 * place + 2)
            if not problem and revision == chain.last.strip():
                problem = SAME
            rounds.append(Round(principle.name, critique, revision, f"the revision {problem}" if problem else ""))
        if not chain.left_out and chain.last == chain.response:
            return Chain(response, rounds, rounds[-1].left_out or f"the revision {SAME}")
        return chain

    async def _reply(self, messages: Messages, number: int, turn: int) -> tuple[str, str]:
        """A reply, and why it cannot be used, empty if it can."""
        seed = hash((self.seed, number, turn)) % 2**31
        try:
            reply = await self.backend.ask(Call(messages, self.max_tokens, self.temperature, seed=seed))
        except CallFailed as failure:
            return "", f"{FAILED}: {failure}"
        text = reply.text.strip()
        return text, CUT_OFF if reply.finish_reason == "length" else "" if text else EMPTY


def conversation_row(prompt: SourcedPrompt, chain: Chain) -> dict[str, Any]:
    """A conversation that ends with the last revision, with the whole chain in the column `chain`."""
    messages = with_answer(prompt.messages, {"role": "assistant", "content": chain.last})
    return prompt.row(messages=messages, chain=asdict(chain))


def pair_row(prompt: SourcedPrompt, chain: Chain) -> dict[str, Any]:
    """A pair: the last revision is preferred to the response."""
    asked = prompt.messages[0]["content"] if len(prompt.messages) == 1 else prompt.messages
    return prompt.row(prompt=asked, chosen=chain.last, rejected=chain.response, chain=asdict(chain))


def left_out(chains: Sequence[Chain]) -> str:
    """What is not in the data, by reason; empty for nothing."""
    whole = Counter(_reason(one.left_out) for one in chains if one.left_out)
    rounds = Counter(_reason(r.left_out) for one in chains if not one.left_out for r in one.rounds if r.left_out)
    told = [f"{sum(whole.values())} of {len(chains)} prompts are left out ({_counted(whole)})"] if whole else []
    told += [f"{sum(rounds.values())} further rounds are passed over ({_counted(rounds)})"] if rounds else []
    return "; ".join(told)


def refuse_unusable(prompts: Sequence[SourcedPrompt]) -> None:
    """
    Raises:
        PostTrainError: for a prompt with tools, which a critique would not show.
    """
    for one in prompts:
        if one.tools:
            raise PostTrainError(f"{one.source}: it has tools, which revise does not pass on; remove such rows")


def _reason(told: str) -> str:
    """Without the message of a failure, which differs from call to call."""
    return told.partition(":")[0]


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
