"""What a judge asks: a model in this process, or an endpoint. Messages in, one reply out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

_TEMPLATE, _TURN = 64, 16  # tokens that a chat template adds: its own system message, and around each message
_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair: no tokenizer and no request can hold it
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Call:
    """One question to a judge's model.

    messages: the conversation. max_tokens: longest reply. temperature: 0 takes the most likely token. choices: if
    given, the reply is one of these short answers, and their probabilities are wanted. schema: a JSON schema that the
    reply follows, where the backend can force that. seed: of the sampling; a repeated question has another one.
    """

    messages: Messages
    max_tokens: int = 512
    temperature: float = 0.0
    choices: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        whole = [
            {**one, "content": _SURROGATE.sub("\ufffd", one["content"])} if isinstance(one.get("content"), str) else one
            for one in self.messages
        ]
        object.__setattr__(self, "messages", whole)


@dataclass(frozen=True)
class Reply:
    """What came back. text: the reply. probabilities: of the call's choices, which sum to 1, or {} if none was asked
    for, or none of them is among what the model might have said; choice_mass: the probability of all choices together
    among all that it might have said, NaN if unknown. finish_reason: "length" if it was cut off. tokens_in, tokens_out:
    what it cost; both are 0 if the server does not tell."""

    text: str
    finish_reason: Literal["stop", "length"] = "stop"
    probabilities: Mapping[str, float] = field(default_factory=dict)
    choice_mass: float = float("nan")
    tokens_in: int = 0
    tokens_out: int = 0


class Backend(Protocol):
    """Answers calls. One that fails raises `CallFailed`, after its own retries."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the replies depend on beside the call: model, version, precision. Part of the cache's key and of every
        record; holds no key or password."""
        ...

    async def ask(self, call: Call) -> Reply:
        """The reply to one call. May be awaited many times at once.

        Raises:
            CallFailed: there is none.
        """
        ...

    async def close(self) -> None:
        """End for good."""
        ...


class CallFailed(Exception):
    """A call without a reply. The message says why, in one line, without keys. charged: True if the server may have
    done the work, so that it counts as if there were a reply. What will fail for every call, such as a wrong key, is a
    `PostTrainError` instead, and ends the run."""

    def __init__(self, message: str, charged: bool = False) -> None:
        super().__init__(message)
        self.charged = charged


class Transient(CallFailed):
    """A call that may succeed when it is repeated. retry_after_s: seconds that the server asks to wait. reached:
    False if no server answered at all."""

    def __init__(
        self, message: str, retry_after_s: float | None = None, charged: bool = False, reached: bool = True
    ) -> None:
        super().__init__(message, charged)
        self.retry_after_s = retry_after_s
        self.reached = reached


def most_tokens(call: Call) -> int:
    """An upper bound of the tokens that a call costs, question and reply, before it is known. No token is shorter than
    a byte, and those of digits and emoji are no longer."""
    asked = sum(len(str(message.get("content") or "").encode()) for message in call.messages)
    asked += len(json.dumps(call.schema)) if call.schema is not None else 0
    return asked + _TEMPLATE + _TURN * len(call.messages) + (1 if call.choices else call.max_tokens)
