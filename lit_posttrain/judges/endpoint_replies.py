"""Reads what an endpoint answers, which may be anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from lit_posttrain.judges.backend import Call, CallFailed, Reply, Transient


class NoProbabilities(Exception):
    """The server has answered without the log-probabilities that it was asked for."""


def reply_of(body: bytes, call: Call, hidden: Callable[[str], str]) -> Reply:
    """The reply in the body of a chat completion. hidden: removes the key from a text.

    Raises:
        Transient: it is cut off, no JSON, or no chat completion.
        CallFailed: the server withholds the reply.
        NoProbabilities: the call has choices, and there are no log-probabilities.
    """
    try:
        said = json.loads(body)
        choice = said["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("content") or message.get("refusal") or ""
        used = said.get("usage") or {}
        tokens_in, tokens_out = int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0)
        if not isinstance(text, str):
            raise TypeError("content")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        start = hidden(body.decode(errors="replace"))[:60]  # of a cut key a part would be left
        raise Transient(f"the answer is no chat completion: {start!r}", charged=True) from None
    if finish == "content_filter":
        raise CallFailed("the endpoint's content filter withholds the reply", charged=True)
    probabilities, mass = _of_choices(choice.get("logprobs"), call.choices) if call.choices else ({}, math.nan)
    return Reply(
        text=text,
        # a reply to choices is cut off after its first token by our own wish
        finish_reason="length" if finish == "length" and not call.choices else "stop",
        probabilities=probabilities,
        choice_mass=mass,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
    )


def _of_choices(logprobs: Any, choices: Sequence[str]) -> tuple[dict[str, float], float]:
    """(probabilities of the choices, normalised, or {} where none is among the likely tokens; their sum before)."""
    try:
        likely = [(str(one["token"]), math.exp(one["logprob"])) for one in logprobs["content"][0]["top_logprobs"]]
    except (LookupError, TypeError, ValueError, OverflowError):
        raise NoProbabilities from None
    if not likely:
        raise NoProbabilities
    masses = dict.fromkeys(choices, 0.0)
    for token, probability in likely:
        meant = _meant(token, choices)
        if meant is not None:
            masses[meant] += probability
    total = sum(masses.values())
    return ({choice: mass / total for choice, mass in masses.items()} if total > 0 else {}), min(total, 1.0)


def _meant(token: str, choices: Sequence[str]) -> str | None:
    """The choice that a reply's first token is, or is the beginning of, if that is of one choice alone."""
    word = token.strip()
    begun = [choice for choice in choices if word and choice.startswith(word)]
    return begun[0] if len(begun) == 1 else None


def refuse_alike(choices: Sequence[str]) -> None:
    """Refuse choices of which one begins another, such as 1 and 10: the first token does not tell them apart.

    Raises:
        ValueError: there are such choices.
    """
    for one in choices:
        if others := [other for other in choices if other != one and other.startswith(one)]:
            raise ValueError(
                f"choices {one!r} and {others[0]!r} begin alike: their first token does not tell them apart"
            )
