"""Asks a judge's model and reads its replies, with three outcomes: what was read, or `Missing` with the reason why a
reply could not be read or was not given at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from lit_posttrain.judges.backend import Backend, Call, CallFailed, Reply
from lit_posttrain.judges.judge import Opinion

Read = TypeVar("Read")

# A greedy reply would come again word for word, so what is asked for again is sampled.
_TEMPERATURE_AGAIN = 0.7
# Below this the probabilities of the answers say nothing: the model was about to say something else, such as a refusal.
LEAST_MASS = 0.01


class Unparsable(Exception):
    """A reply that is not of the form that was asked for. The message says what it was instead, in one line."""


@dataclass(frozen=True)
class Missing:
    """No answer: `failed` without a reply, `unparsable` with none that can be read."""

    outcome: Literal["unparsable", "failed"]
    error: str


def no_opinion(missing: Sequence[Missing], count: int, calls: int, details: Mapping[str, Any]) -> Opinion:
    """The opinion on `count` responses where these answers are missing: it failed if a call did, for then another run
    may have an answer."""
    worst = next((one for one in missing if one.outcome == "failed"), missing[0])
    return Opinion(worst.outcome, [None] * count, error=worst.error, calls=calls, details=details)


class Asking:
    """The questions on one item. calls: how often the model was asked so far.

    Args:
        backend: The judge's model.
        reasks: How often a reply that cannot be read is asked for again, with another seed.
    """

    def __init__(self, backend: Backend, reasks: int) -> None:
        self.backend, self.reasks = backend, reasks
        self.calls = 0

    async def ask(self, call: Call, read: Callable[[Reply], Read]) -> Read | Missing:
        """What `read` makes of the reply. read: raises `Unparsable` for a reply that cannot be read.

        Raises:
            Exception: what stops the run, such as a spent budget; a call that fails is `Missing`.
        """
        asked = call
        for number in range(self.reasks + 1):
            self.calls += 1
            try:
                return read(await self.backend.ask(asked))
            except CallFailed as problem:
                return Missing("failed", str(problem))
            except Unparsable as problem:
                told = str(problem)
            if call.choices:  # probabilities do not depend on a seed
                break
            hotter = max(call.temperature, _TEMPERATURE_AGAIN)
            asked = replace(call, seed=call.seed + number + 1, temperature=hotter)
        return Missing("unparsable", told)


async def together(work: Iterable[Awaitable[Read]]) -> list[Read]:
    """The results in order, of work that is awaited at once. If any raises, the others are awaited first, so that no
    call goes on unnoticed."""
    found = await asyncio.gather(*work, return_exceptions=True)
    if problems := [one for one in found if isinstance(one, BaseException)]:
        raise problems[0]
    return [one for one in found if not isinstance(one, BaseException)]


def whole(reply: Reply) -> str:
    """The text of a reply, without a thought before it.

    Raises:
        Unparsable: it is empty, or was cut off.
    """
    text = reply.text.rpartition("</think>")[2].strip()
    if reply.finish_reason == "length":
        raise Unparsable(f"the reply was cut off after {reply.tokens_out} tokens; raise max_tokens")
    if not text:
        raise Unparsable("the reply is empty")
    return text


def quoted(text: str, size: int = 60) -> str:
    """The beginning of a text in one line, to quote in an error."""
    line = " ".join(text.split())
    return repr(line if len(line) <= size else line[: size - 3] + "...")


def probabilities(reply: Reply, choices: tuple[str, ...]) -> list[float]:
    """The probabilities of the choices, in their order; they sum to 1.

    Raises:
        Unparsable: the model was about to say something else.
    """
    found = [float(reply.probabilities.get(choice, 0.0)) for choice in choices]
    if reply.choice_mass < LEAST_MASS or not sum(found) > 0:  # an unknown mass is NaN, and passes
        instead = f"; it says {quoted(reply.text)}" if reply.text.strip() else ""
        raise Unparsable(
            f"{choices[0]} to {choices[-1]} have {reply.choice_mass:.2%} of the probability of the reply{instead}: ask "
            "for a written verdict instead (kind verdict or rubric)"
        )
    return [one / sum(found) for one in found]
