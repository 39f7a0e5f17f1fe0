"""What answers the policy within a response: nobody by default, a user, a tool or a game for other tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from lit_posttrain.errors import PostTrainError, first_line
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


def environment_class(name: str | type[Environment] | None) -> type[Environment]:
    """An environment by its import path, such as `my_games.Chess`; without a name, nobody answers.

    Raises:
        PostTrainError: if there is no such class, or it lacks `reset` or `step`.
    """
    if name is None:
        return SingleTurn
    found: Any = name
    if isinstance(name, str):
        home, _, short = name.rpartition(".")
        try:
            found = getattr(import_module(home), short)
        except (ImportError, AttributeError, ValueError) as problem:
            raise PostTrainError(
                f"--model.rollout.environment {name}: {first_line(problem)}; give the import path of a class"
            ) from problem
    lacking = [part for part in ("reset", "step") if not callable(getattr(found, part, None))]
    if not isinstance(found, type) or lacking:
        what = f"it has no {' and no '.join(lacking)}" if isinstance(found, type) else "it is no class"
        raise PostTrainError(f"--model.rollout.environment {name}: {what}; see on_policy/environment.py")
    return found
