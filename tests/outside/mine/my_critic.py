"""Constrained PPO (Dai et al. 2024): a critic of the reward, and one of a cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_posttrain import PPO
from lit_posttrain.methods.ppo import at_last_token
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.on_policy.rollouts import Rollout


class SafePPO(PPO):
    """PPO whose policy follows (A_reward - m A_cost) / (1 + m); `cost` is a reward of weight 0 with that name."""

    def __init__(self, *args: Any, multiplier: float = 1.0, cost: Critic = Critic(), **options: Any) -> None:
        super().__init__(*args, **options)
        self.critics.add("cost", cost)
        self.collector.rewards.needed = frozenset({"cost"})  # no score without it
        self.register_buffer("multiplier", torch.tensor(multiplier, dtype=torch.float64))

    def token_rewards(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        costs = np.concatenate([one.scores["cost"] for one in rollouts])
        return super().token_rewards(rollouts) | {"cost": at_last_token([one.tree for one in rollouts], costs)}

    def combined(self, advantages: Mapping[str, Tensor]) -> Tensor:
        m = torch.as_tensor(self.multiplier)
        return (advantages["reward"] - m * advantages["cost"]) / (1 + m)
