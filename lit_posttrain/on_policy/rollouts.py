"""Sampled responses with all that was said of them, and the figures of a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lit_posttrain.types import BoolArray, IntArray, Tree

FloatArray = NDArray[np.float64]
Stats = dict[str, tuple[float, float]]  # of metrics, by name: the sum and the count; what is logged is sum / count


@dataclass
class Trajectory:
    """One response: what the policy sampled and what an environment inserted in between.

    tokens: (n,) int32. sampled: (n,) bool, True for tokens that the policy drew; several spans of them if it had
    several turns. logprobs: (n,) float32, of sampled tokens under the distribution they were drawn from, 0 for inserted
    ones. messages: the same as messages; the first is the policy's. text: what the policy said last. finish_reason:
    "stop" at an end token, "length" where it was cut off. reward: sum of what the environment gave, None for nothing.
    """

    tokens: IntArray
    sampled: BoolArray
    logprobs: NDArray[np.float32]
    messages: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    finish_reason: Literal["stop", "length"] = "stop"
    reward: float | None = None

    @classmethod
    def empty(cls) -> Trajectory:
        """One in which nothing has been said."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.bool_), np.zeros(0, np.float32))

    @property
    def truncated(self) -> bool:
        """True if it was cut off at its longest length."""
        return self.finish_reason == "length"


@dataclass
class Rollout:
    """A prompt and its K sampled responses.

    tree: the prompt and the responses as tokens: a response's `loss_mask` marks the sampled tokens that are trained on,
    `labels["reward"]` is its total score, absent for none, and `per_target["rollout_logprobs"]` are the engine's
    log-probs of the trained tokens. trajectories: (K). scores: by reward (K,) float64 before weighting, NaN for none.
    failed: by reward (K,) bool. unshaped: (K,) total without shaping rewards, NaN for none.
    """

    tree: Tree
    trajectories: list[Trajectory]
    scores: dict[str, FloatArray]
    failed: dict[str, BoolArray]
    unshaped: FloatArray

    @property
    def total(self) -> FloatArray:
        """(K,) the weighted sum of the rewards of each response, NaN for none."""
        return np.array([response.label("reward") for response in self.tree.responses])

    @property
    def has_reward_variance(self) -> bool:
        """True if two of the responses have different totals."""
        return _differ(self.total)

    @property
    def has_signal(self) -> bool:
        """True if rewards differ within the group, shaping rewards (length, repetition) excluded: only then is there
        something to learn."""
        return _differ(self.unshaped)

    def only(self, places: Sequence[int]) -> Rollout:
        """The rollout with some of its responses, in the order given."""
        sizes = [response.num_trained for response in self.tree.responses]
        ends = np.cumsum([0, *sizes])
        targets = np.concatenate([np.zeros(0, np.int64), *(np.arange(ends[k], ends[k + 1]) for k in places)])
        tree = replace(
            self.tree,
            responses=[self.tree.responses[k] for k in places],
            per_target={name: column[targets] for name, column in self.tree.per_target.items()},
        )
        chosen = list(places)
        return Rollout(
            tree,
            [self.trajectories[k] for k in places],
            {name: scores[chosen] for name, scores in self.scores.items()},
            {name: failed[chosen] for name, failed in self.failed.items()},
            self.unshaped[chosen],
        )


def _differ(scores: FloatArray) -> bool:
    known = scores[~np.isnan(scores)]
    return bool(len(known)) and bool(known.min() < known.max())


def missing_scores(rollouts: Sequence[Rollout], rewards: Sequence[str]) -> str:
    """A warning about responses without a score although no reward has failed on them; empty if there are none.
    rewards: names of what could give them one."""
    if any(failed.any() for one in rollouts for failed in one.failed.values()):
        return ""  # that has been told
    scores = [(score, one.tree.source) for one in rollouts for score in one.total.tolist()]
    none = [source for score, source in scores if score != score]
    if not none:
        return ""
    return (
        f"{len(none)} of {len(scores)} responses have no score and train nothing, first those to {none[0]}: "
        f"{', '.join(rewards)} gave None; look whether the row has the columns that it reads, and what it returns"
    )


def cut_off(rollouts: Sequence[Rollout], longest: int) -> str:
    """A warning where most responses are cut off before their end; empty otherwise."""
    ends = [trajectory.truncated for one in rollouts for trajectory in one.trajectories]
    if sum(ends) * 2 <= len(ends):
        return ""
    judged = "rewards judge text without its end, and " if any(one.scores for one in rollouts) else ""
    return (
        f"{sum(ends)} of {len(ends)} responses were cut off at {longest} tokens: {judged}the model does not learn to "
        "stop; raise --model.rollout.max_new_tokens"
    )


def rollout_stats(rollouts: Sequence[Rollout], rewards: Sequence[str], grouped: bool = True) -> Stats:
    """By name the sum and the count of what is logged of sampled responses: completions/mean_length (tokens),
    completions/clipped_ratio, and where there are rewards reward, reward/missing_ratio, rewards/NAME/mean and
    rewards/NAME/failed. grouped: reward_std (of groups, ddof 1) and frac_reward_zero_std too."""
    stats: Stats = {}
    sizes = [len(trajectory.tokens) for one in rollouts for trajectory in one.trajectories]
    count = float(len(sizes))
    if rewards:
        scores = [torch.from_numpy(one.total) for one in rollouts]
        known = [score[~score.isnan()] for score in scores]
        total = torch.cat(known) if known else torch.zeros(0)
        stats["reward"] = (float(total.sum()), float(len(total)))
        if grouped:
            spreads = [float(score.std()) for score in known if len(score) > 1]
            flat = sum(not one.has_reward_variance for one in rollouts)
            stats["reward_std"] = (sum(spreads), float(len(spreads)))
            stats["frac_reward_zero_std"] = (float(flat), float(len(rollouts)))
        stats["reward/missing_ratio"] = (count - len(total), count)
    cut = sum(trajectory.truncated for one in rollouts for trajectory in one.trajectories)
    stats["completions/mean_length"] = (float(sum(sizes)), count)
    stats["completions/clipped_ratio"] = (float(cut), count)
    for name in rewards:
        values = [value for one in rollouts for value in one.scores[name].tolist() if value == value]
        stats[f"rewards/{name}/mean"] = (sum(values), float(len(values)))
        # always there: in validation every rank must have the same names
        failed = sum(int(one.failed[name].sum()) for one in rollouts)
        stats[f"rewards/{name}/failed"] = (float(failed), count)
    return stats
