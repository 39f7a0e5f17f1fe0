"""What every generation engine offers: token ids in, token ids out. Text is never tokenised again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lit_posttrain.errors import PostTrainError


@dataclass
class Sampling:
    """How responses are drawn.

    Args:
        max_new_tokens: Longest response, in tokens.
        temperature: 1 samples from the model's own distribution, 0 takes the most likely token every time.
        top_p: Sample from the smallest set of tokens with this much probability; 1 is all of them.
        top_k: Sample from this many most likely tokens; 0 is all of them.
        seed: The same seed, model and prompts give the same responses.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise PostTrainError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise PostTrainError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise PostTrainError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise PostTrainError(f"top_k is {self.top_k}; it must be 0 (all) or more")


@dataclass
class Completion:
    """One sampled response.

    tokens: its ids, the end token included when it was sampled.
    logprobs: of each token under the distribution it was drawn from (after temperature, top-k and top-p).
    finish_reason: "stop" at an end token, "length" at max_new_tokens.
    version: which weights drew it.
    """

    tokens: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    version: int = 0


class Engine(Protocol):
    """A generation engine."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """n responses to each prompt, in the prompts' order."""
        ...
