"""Counts of what a run has had to learn from so far, and what to say where that is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_posttrain.errors import PostTrainError, on_all_ranks
from lit_posttrain.on_policy.rollouts import Rollout

FIRST_ROLLOUTS = 3  # if nothing was learnt from so many at the beginning of a run it is no bad luck any more


@dataclass
class Signal:
    """Counts over all rollouts of a run and all ranks. scored, trained: responses that have a score, and that are
    trained on. reward: the sum of the scores. prompts: those that were answered; unequal: those of which two responses
    have different scores."""

    rollouts: int = 0
    responses: int = 0
    scored: int = 0
    trained: int = 0
    reward: float = 0.0
    prompts: int = 0
    unequal: int = 0

    def add(self, seen: Sequence[Rollout]) -> None:
        """Count a rollout."""
        totals = np.concatenate([one.total for one in seen])
        known = totals[~np.isnan(totals)]
        self.rollouts, self.prompts = self.rollouts + 1, self.prompts + len(seen)
        self.responses, self.scored = self.responses + len(totals), self.scored + len(known)
        self.trained += sum(bool(response.loss_mask.any()) for one in seen for response in one.tree.responses)
        self.reward += float(known.sum())
        self.unequal += sum(one.has_reward_variance for one in seen)

    def require_scores(self, rewards: Sequence[str]) -> None:
        """Refuse to go on without any. rewards: names of what could give a response a score.

        Raises:
            PostTrainError: on all ranks, if there were responses and none has a score.
        """
        if self.responses and not self.scored:
            problem = PostTrainError(
                f"none of the {self.responses:,} responses of this run has a score, so nothing was learnt: "
                f"{without_score(rewards)}"
            )
            raise on_all_ranks(problem)

    def nothing_learnt(self, compares: bool) -> str:
        """Why nothing was learnt although there were scores, or none was needed; empty if something was. compares: True
        for a method that learns from differences of the scores to a prompt."""
        if self.responses and not self.trained:
            return (
                f"nothing was learnt from {self.responses:,} responses: all were cut off, and "
                "--model.rollout.mask_truncated leaves those out; raise --model.rollout.max_new_tokens"
            )
        if compares and self.scored and not self.unequal:
            return (
                f"nothing was learnt from {self.prompts:,} prompts: the responses to each had equal scores "
                f"({self.reward / self.scored:.3g} on average); take prompts of which the model answers some right, a "
                "reward that tells more responses apart, or a larger --model.rollout.group_size"
            )
        return ""


def without_score(rewards: Sequence[str]) -> str:
    """Why responses have no score, and what to do. rewards: names of what could give them one."""
    gave = f"{', '.join(rewards)} gave None for each, or failed"
    return f"{gave}; look what they return, and whether the rows have the columns that they read"
