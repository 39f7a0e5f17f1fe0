"""How an on-policy method samples responses, and how a rollout becomes optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from lit_posttrain.errors import PostTrainError
from lit_posttrain.on_policy.environment import Environment
from lit_posttrain.rollout.engine import EngineSpec, Sampling


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How responses are sampled and rewarded, and how a rollout becomes optimizer steps.

    Args:
        group_size: Responses to each prompt.
        max_new_tokens: Longest response, in tokens; where an environment answers in between, its words are among them.
        temperature: Temperature of the sampling; the loss is of the same distribution, also on given responses.
        seed: Seed of the sampling.
        inner_epochs: How often the responses of a rollout are trained on.
        minibatches: Optimizer steps that each of these times is cut into; --data.batch_size prompts are shared by them.
        dynamic_sampling_retries: How often at most further prompts are answered in place of those without a learning
            signal, whose responses all got the same score (DAPO's dynamic sampling); 0 keeps them. Shaping rewards,
            LengthPenalty and Repetition, make no difference to that.
        mask_truncated: Leave responses that were cut off at their longest length out of the loss; they stay in the mean
            of their group.
        reward_timeout: Seconds that a reward may take for the responses of a rollout.
        engine: What draws the responses: the model itself (hf) or vLLM.
        environment: What answers the policy within a response, such as a game or a tool, and may give it a reward. By
            default nothing does: a response is one turn.
    """

    # the module compares environments itself
    free_on_resume: ClassVar[tuple[str, ...]] = ("reward_timeout", "engine", "environment")

    group_size: int = 8
    max_new_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0
    inner_epochs: int = 1
    minibatches: int = 1
    dynamic_sampling_retries: int = 0
    mask_truncated: bool = False
    reward_timeout: float = 60.0
    engine: EngineSpec = EngineSpec()
    environment: Environment | None = None

    def __post_init__(self) -> None:
        for name in ("group_size", "inner_epochs", "minibatches", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise PostTrainError(f"--model.rollout.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("temperature", "reward_timeout"):
            if not getattr(self, name) > 0:
                raise PostTrainError(f"--model.rollout.{name} is {getattr(self, name):g}; it must be above 0")
        if self.seed < 0:
            raise PostTrainError(f"--model.rollout.seed is {self.seed}; it must be at least 0")
        if self.dynamic_sampling_retries < 0:
            raise PostTrainError(
                f"--model.rollout.dynamic_sampling_retries is {self.dynamic_sampling_retries}; it must be 0 (off) or "
                "more"
            )
        if self.dynamic_sampling_retries and self.group_size < 2:
            raise PostTrainError(
                f"--model.rollout.dynamic_sampling_retries {self.dynamic_sampling_retries} with "
                "--model.rollout.group_size 1: a response that is alone differs from none, so every prompt would be "
                "answered again; leave it at 0"
            )

    @property
    def steps(self) -> int:
        """Optimizer steps a rollout."""
        return self.inner_epochs * self.minibatches

    def sampling(self, seed: int = 0, greedy: bool = False) -> Sampling:
        """How the engine draws: from the policy's whole distribution, or its most likely tokens."""
        return Sampling(self.max_new_tokens, 0.0 if greedy else self.temperature, seed=self.seed + seed)

    def require_groups(self) -> None:
        """
        Raises:
            PostTrainError: for one response to a prompt, in a method that compares responses.
        """
        if self.group_size < 2:
            raise PostTrainError("--model.rollout.group_size 1: a response is compared with others; take at least 2")

    def refuse_given(self) -> None:
        """
        Raises:
            PostTrainError: for an option of rollouts that would do nothing where responses are given. Not for
                max_new_tokens, which ready-made configs set; temperature is that of the loss too.
        """
        unused = RolloutConfig(group_size=1)
        for name in (field.name for field in fields(self) if field.name not in ("max_new_tokens", "temperature")):
            if getattr(self, name) != getattr(unused, name):
                raise PostTrainError(
                    f"--model.rollout.{name} is about sampled responses, and those of this data are given: leave it "
                    "out, or answer its prompts with --data PromptData"
                )

    def check_cut(self, prompts: int, parts: int, splits_groups: bool) -> None:
        """Check that a rollout of so many prompts gives every micro-batch, `parts` a step, something to do.

        Raises:
            PostTrainError: if not.
        """
        if prompts % self.minibatches:
            raise PostTrainError(
                f"--data.batch_size {prompts} is no multiple of --model.rollout.minibatches {self.minibatches}: the "
                "steps of a rollout would have unequal numbers of prompts"
            )
        each = prompts // self.minibatches
        if each * (self.group_size if splits_groups else 1) < parts:
            prompts_a_step = "1 prompt" if each == 1 else f"{each} prompts"
            held = f"{prompts_a_step} x {self.group_size} responses" if splits_groups else prompts_a_step
            raise PostTrainError(
                f"a step has {held} for {parts} micro-batches (--trainer.accumulate_grad_batches x processes): lower "
                "those, or raise --data.batch_size"
            )
