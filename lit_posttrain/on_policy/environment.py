"""What answers the policy within a response: nobody by default, a user, a tool or a game for other tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lit_posttrain.types import PromptRecord


@dataclass
class Step:
    """What an environment answers to a message of the policy.

    messages: what comes next, such as a tool's result; the policy answers it, unless `done`. reward: what this step is
    worth, None for nothing said. done: True if the episode ends here.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    reward: float | None = None
    done: bool = True


class Environment(Protocol):
    """One episode: every response gets an object of its own."""

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        """Begin with a prompt: messages to add to it, which the policy reads before it answers; usually none. They must
        be the same for all responses to a prompt."""
        ...

    def step(self, message: dict[str, Any]) -> Step:
        """Answer a message of the policy, such as {"role": "assistant", "content": "..."}."""
        ...


class SingleTurn:
    """The policy answers the prompt once."""

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        """Nothing to add."""
        return ()

    def step(self, message: dict[str, Any]) -> Step:
        """The end."""
        return Step()
