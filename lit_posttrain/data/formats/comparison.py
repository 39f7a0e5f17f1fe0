"""A prompt and its compared responses, and the common prompt of two conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.message_checks import alike, same
from lit_posttrain.data.rows.message_keys import SYSTEM, Messages


@dataclass(slots=True)
class Candidate:
    """One response, as messages that follow the prompt. labels: see `types.Response`."""

    messages: Messages
    labels: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Comparison:
    """A prompt and its compared responses. around: tools and template variables, as arguments of `Example`."""

    prompt: Messages
    candidates: list[Candidate] = field(default_factory=list)
    around: dict[str, Any] = field(default_factory=dict)


def equal_responses() -> NothingToLearn:
    """The reason why a pair of equal responses is dropped."""
    return NothingToLearn("equal responses", "both responses are the same: no preference; remove the row")


def after_prompt(
    prompt: Messages, sides: Sequence[Messages], column: str, names: Sequence[str]
) -> tuple[Messages, list[Messages]]:
    """The prompt, and the part of each side that follows it. A side is a response alone, or a conversation that begins
    with the prompt; a system turn of the sides belongs to the prompt. If all sides begin with several turns that end
    with a prompt of one turn, those turns are the prompt.

    Raises:
        BadRow: a side begins with another prompt, or another system prompt.
        NothingToLearn: the sides begin differently.
    """
    opened = [side for side in sides if side and side[0]["role"] != "assistant"]
    if not opened:
        return prompt, list(sides)
    systems = [side[:1] if side[0]["role"] in SYSTEM else [] for side in opened]
    if not all(alike(system, systems[0]) for system in systems):
        raise NothingToLearn("no shared prompt", "the two sides have different system prompts; remove the row")
    own, asked = _split(prompt)
    system = own or systems[0]
    if own and systems[0] and not alike(own, systems[0]):
        raise BadRow("two prompts", f"`{column}` and `{names[0]}` have different system prompts; keep one of them")
    bare = [_split(side)[1] for side in sides]
    turns = [side for side in bare if side and side[0]["role"] != "assistant"]
    if len(turns) == len(sides) and len(asked) == 1:
        last = max((i for i, turn in enumerate(turns[0]) if alike([turn], asked)), default=-1)
        common = turns[0][: min((_parted(turns[0], side) for side in turns[1:]), default=last + 1)]
        if any(alike([turn], asked) for turn in common):
            return [*system, *common], [side[len(common) :] for side in bare]
    rests = [_rest(side, asked) if _begins(side) else side for side in bare]
    said = [rest for rest in rests if rest is not None]
    if len(said) == len(sides):
        return [*system, *asked], said
    name, side = next((n, s) for n, s, rest in zip(names, bare, rests, strict=True) if rest is None)
    raise BadRow(
        "two prompts",
        f"`{name}` begins with {_excerpt(side)} where `{column}` is {_excerpt(asked)}; mend it, or remove one of them",
    )


def begins_with(side: Messages, prompt: Messages) -> bool:
    """True if a side begins with a prompt, system turns aside."""
    return _rest(_split(side)[1], _split(prompt)[1]) is not None


def shared_prompt(first: Messages, second: Messages, only_last: bool = False) -> Messages:
    """The turns that both sides begin with, up to the one in which they differ. only_last: that must be the last
    one.

    Raises:
        NothingToLearn: the sides are equal, or begin with nothing in common.
    """
    if same(first, second):
        raise equal_responses()
    parted = _parted(first, second)
    if parted == len(first) == len(second):  # only notes on the turns differ
        parted -= 1
    if parted == 0 or (only_last and not len(first) == len(second) == parted + 1):
        raise NothingToLearn(
            "no shared prompt", "the two sides begin differently: they answer no common prompt; remove the row"
        )
    return first[:parted]


def _parted(first: Messages, second: Messages) -> int:
    """The number of turns that both begin with."""
    parted = 0
    while parted < min(len(first), len(second)) and alike(first[parted : parted + 1], second[parted : parted + 1]):
        parted += 1
    return parted


def _rest(side: Messages, asked: Messages) -> Messages | None:
    """The part of a side that follows a prompt, whose last assistant turn it may continue; None if it begins
    differently."""
    count = len(asked)
    if alike(side[:count], asked):
        return side[count:]
    if len(side) < count or asked[-1]["role"] != "assistant":
        return None
    begun, said = asked[-1]["content"], side[count - 1]["content"]
    if not said.startswith(begun) or not alike([*side[: count - 1], {**side[count - 1], "content": begun}], asked):
        return None
    return [{**side[count - 1], "content": said[len(begun) :]}, *side[count:]]


def _split(messages: Messages) -> tuple[Messages, Messages]:
    """The system turn, if there is one, and the rest."""
    own = 1 if messages and messages[0]["role"] in SYSTEM else 0
    return messages[:own], messages[own:]


def _begins(side: Messages) -> bool:
    return bool(side) and side[0]["role"] != "assistant"


def _excerpt(messages: Messages) -> str:
    text = str(messages[0]["content"])
    return repr(text if len(text) <= 60 else text[:57] + "...")
