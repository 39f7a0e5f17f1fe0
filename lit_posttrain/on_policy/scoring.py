"""From what was sampled to rollouts: scores of all rewards, and what of every response is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_posttrain.on_policy.rollouts import FloatArray, Rollout, Trajectory
from lit_posttrain.rewards.total import RewardSum
from lit_posttrain.types import PromptRecord, Response, Tree

ENVIRONMENT = "environment"  # what the score of an environment is called beside those of rewards


@dataclass(frozen=True)
class Scoring:
    """rewards: the rewards that judge responses. environment: True if an environment may give rewards of its own, which
    add to the total. trains_unscored: True if responses without a score are trained on. mask_truncated: True if those
    that were cut off are not."""

    rewards: RewardSum
    environment: bool
    trains_unscored: bool
    mask_truncated: bool

    def rollouts(self, prompts: Sequence[Tree], drawn: Sequence[Sequence[Trajectory]]) -> list[Rollout]:
        """Rollouts of prompts with equally many responses each."""
        flat = [(tree, one) for tree, group in zip(prompts, drawn, strict=True) for one in group]
        if not flat:
            return []
        found = self.rewards(
            self.rewards.batch(
                [PromptRecord.of(tree) for tree in prompts for _ in drawn[0]],
                [tree.source for tree, _ in flat],
                [one.text for _, one in flat],
                [one for _, one in flat],
                [one.messages for _, one in flat],
            ),
            alone=not self.environment,
        )
        total, unshaped, broken = found.total.numpy(), found.unshaped.numpy(), found.broken.numpy()
        scores = {name: values.numpy() for name, values in found.scores.items()}
        failed = {name: values.numpy() for name, values in found.failed.items()}
        if self.environment:
            given = np.array([math.nan if one.reward is None else one.reward for _, one in flat])
            scores[ENVIRONMENT], failed[ENVIRONMENT] = given, np.zeros(len(given), np.bool_)
            total, unshaped = (np.where(broken, np.nan, _plus(values, given)) for values in (total, unshaped))
        rollouts, begin = [], 0
        for tree, group in zip(prompts, drawn, strict=True):
            own = slice(begin, begin + len(group))
            rollouts.append(
                Rollout(
                    self._tree(tree, group, total[own].tolist()),
                    list(group),
                    {name: values[own] for name, values in scores.items()},
                    {name: values[own] for name, values in failed.items()},
                    unshaped[own],
                )
            )
            begin += len(group)
        return rollouts

    def _tree(self, prompt: Tree, group: Sequence[Trajectory], totals: Sequence[float]) -> Tree:
        """The prompt and its responses as they are trained on."""
        responses, logprobs = [], []
        for one, total in zip(group, totals, strict=True):
            missing = math.isnan(total)
            trains = (self.trains_unscored or not missing) and not (self.mask_truncated and one.truncated)
            mask = one.sampled & trains
            responses.append(Response(one.tokens, mask, {} if missing else {"reward": total}))
            logprobs.append(one.logprobs[mask])
        columns = {"rollout_logprobs": np.concatenate(logprobs)}
        return Tree(prompt.prompt, responses, None, prompt.file, prompt.line, "", columns)


def _plus(totals: FloatArray, given: FloatArray) -> FloatArray:
    """Totals with what an environment gave; either may be missing."""
    both = np.stack([totals, given])
    found: FloatArray = np.where(np.isnan(both).all(0), np.nan, np.nansum(both, 0))
    return found
