"""How what an on-policy method samples at once becomes optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass

from lit_posttrain.errors import PostTrainError


@dataclass
class Phases:
    """How a rollout phase is cut into optimizer steps, and how often it is gone through.

    Args:
        group_size: Responses to each prompt.
        inner_epochs: How often the phase's responses are trained on.
        minibatches: Optimizer steps that each of these times is cut into; --data.batch_size prompts are shared by them.
        top_up: How often at most further prompts are answered in place of those whose responses all got the same score
            and so teach nothing (DAPO's dynamic sampling); 0 keeps them. What LengthPenalty and Repetition say makes no
            difference to that.
        mask_truncated: Leave responses that were cut off at their longest length out of the loss; they stay in the mean
            of their group.
    """

    group_size: int = 8
    inner_epochs: int = 1
    minibatches: int = 1
    top_up: int = 0
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        for name in ("group_size", "inner_epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise PostTrainError(f"--model.phases.{name} is {getattr(self, name)}; it must be at least 1")
        if self.top_up < 0:
            raise PostTrainError(f"--model.phases.top_up is {self.top_up}; it must be 0 (off) or more")

    @property
    def steps(self) -> int:
        """Optimizer steps a phase."""
        return self.inner_epochs * self.minibatches

    def check_cut(self, prompts: int, parts: int) -> None:
        """Whether a phase of so many prompts gives every one of its micro-batches, `parts` a step, something to do.

        Raises:
            PostTrainError: if not.
        """
        if prompts % self.minibatches:
            raise PostTrainError(
                f"--data.batch_size {prompts} is no multiple of --model.phases.minibatches {self.minibatches}: the "
                "steps of a phase would have unequal numbers of prompts"
            )
        if prompts // self.minibatches * self.group_size < parts:
            raise PostTrainError(
                f"a step has {prompts // self.minibatches} prompts x {self.group_size} responses for {parts} "
                "micro-batches (--trainer.accumulate_grad_batches x processes): lower those, or raise --data.batch_size"
            )
