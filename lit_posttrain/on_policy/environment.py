"""Environments answer the policy within a response, such as a user, a tool or a game."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import raised_at, said_by
from lit_posttrain.types import PromptRecord


@dataclass
class Step:
    """An environment's answer to a message of the policy.

    messages: the next messages, such as a tool's result; the policy answers them, unless `done`. reward: of this step,
    None for no reward. done: True if the episode ends here.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    reward: float | None = None
    done: bool = True


class Environment(ABC):
    """Base class of environments. A deep copy is reset for every prompt, and every response is an episode with a deep
    copy of that, so that what an episode remembers is its own. A subclass implements `step`; arguments of its
    constructor are its options.

    A run resumes exactly if answers depend on nothing but the prompt and what was said: seed random numbers with
    something of the prompt.
    """

    def reset(self, record: PromptRecord) -> Sequence[dict[str, Any]]:
        """Begin with a prompt. Returns messages to add to it, which the policy reads before it answers; by default
        none. Called once for all responses to a prompt."""
        return ()

    @abstractmethod
    def step(self, message: dict[str, Any]) -> Step:
        """Answer a message of the policy, such as {"role": "assistant", "content": "..."}."""

    def resume_options(self) -> dict[str, Any]:
        """Options that decide its answers and rewards, such as a limit: a resumed run must have the same. They are
        written into every checkpoint, so they hold no key or password. Default: none."""
        return {}


def reset(environment: Environment, record: PromptRecord) -> list[dict[str, Any]]:
    """The messages that an environment adds to a prompt.

    Raises:
        PostTrainError: if it fails, or returns anything but messages.
    """
    with _named(environment):
        added = environment.reset(deepcopy(record))
    return _messages(environment, added)


def answer(environment: Environment, message: dict[str, Any]) -> Step:
    """An environment's answer.

    Raises:
        PostTrainError: if it fails, returns anything but a step, or neither ends nor says anything.
    """
    with _named(environment):
        found = environment.step(deepcopy(message))
    name = type(environment).__name__
    if not isinstance(found, Step):
        told = f"step returned {type(found).__name__}; let it return Step(messages, reward, done)"
        raise PostTrainError(f"the environment {name}: {told}")
    if found.reward is not None and not math.isfinite(found.reward):
        raise PostTrainError(f"the environment {name}: step gave the reward {found.reward}; give None for no reward")
    if not found.done and not found.messages:
        raise PostTrainError(
            f"the environment {name} is not done and has nothing to say; let step return messages, or done=True"
        )
    return replace(found, messages=_messages(environment, found.messages))


@contextmanager
def _named(environment: Environment) -> Iterator[None]:
    """An error of its code says whose it is, and where."""
    try:
        yield
    except PostTrainError:
        raise
    except Exception as problem:
        name = type(environment).__name__
        raise PostTrainError(f"the environment {name} fails at {raised_at(problem)}: {said_by(problem)}") from problem


def _messages(environment: Environment, found: Any) -> list[dict[str, Any]]:
    listed = isinstance(found, (list, tuple))
    if not listed or not all(isinstance(one, dict) and "role" in one for one in found):
        raise PostTrainError(
            f"the environment {type(environment).__name__} returned {str(found)[:60]} as messages; they are a list, "
            'such as [{"role": "user", "content": "..."}]'
        )
    return list(found)
