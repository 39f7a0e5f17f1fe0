"""What answers the policy within a response, such as a user, a tool or a game."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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


class Environment(ABC):
    """Base class of environments. A deep copy is reset for every prompt, and every response is an episode with a deep
    copy of that, so that what an episode remembers is its own. A subclass implements `step`; arguments of its
    constructor are its options."""

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        """Begin with a prompt. Returns messages to add to it, which the policy reads before it answers; by default
        none. Called once for all responses to a prompt."""
        return ()

    @abstractmethod
    def step(self, message: dict[str, Any]) -> Step:
        """Answer a message of the policy, such as {"role": "assistant", "content": "..."}."""

    def resume_options(self) -> dict[str, Any]:
        """What decides its answers and rewards, such as a limit: a resumed run must have the same. Written into every
        checkpoint, so it holds no key or password. By default nothing."""
        return {}
