"""The interface of generation engines: token ids in, token ids out. Text is never tokenised again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self

from lit_posttrain.errors import PostTrainError


@dataclass(frozen=True)
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

    def cut(self, size: int) -> Self:
        """The first `size` tokens; the completion itself if it has no more."""
        if len(self.tokens) <= size:
            return self
        return replace(self, tokens=self.tokens[:size], logprobs=self.logprobs[:size], finish_reason="length")


@dataclass(frozen=True)
class EngineSpec:
    """The engine that draws the responses.

    Args:
        name: hf is the trained model itself, in this process. vllm is a process of its own; it gets the weights before
            every phase and proves that it has them.
        batch_size: How many responses hf decodes together: more are faster, and take more memory.
        cache_gb: Memory in which vllm keeps the keys and values of what it decodes, in GB.
        dtype: Type in which vllm computes. Default: that of the training's arithmetic.
        timeout: Seconds after which a vllm that does not answer is given up.
        options: Further arguments of vllm.LLM, by name.
    """

    name: Literal["hf", "vllm"] = "hf"
    batch_size: int = 64
    cache_gb: float = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    timeout: float = 1800.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch_size", "cache_gb", "timeout"):
            if getattr(self, name) <= 0:
                raise PostTrainError(f"--model.rollout.engine.{name} is {getattr(self, name)}; it must be above 0")


def prompt_seed(seed: int, number: int) -> int:
    """The seed of a prompt's first sample; those of the others are the next ones. It depends on the prompt's number
    among all that are answered with a seed, not on how many processes share them."""
    return hash((seed, number)) % 2**62


SamplingProgress = Callable[[int, int, int, int], None]
"""Called for every token that is drawn: batch number from 1, batches in all, token number from 1, longest response."""


class Engine(Protocol):
    """A generation engine, made for a policy."""

    def generate(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """n responses to each prompt, in the prompts' order, by the weights of the last update. numbers: of each prompt
        its number among all that are answered with this seed, on whatever process; 0, 1, ... by default."""
        ...

    def update_weights(self, version: int) -> None:
        """Take over the policy's weights as they are; `version` is what completions will be marked with. All ranks of a
        sharded policy must ask."""
        ...

    def sleep(self) -> None:
        """Free the memory of a GPU that is shared with the training. The next update wakes, and brings weights in any
        case, of the same version too."""
        ...

    def close(self) -> None:
        """End for good."""
        ...
