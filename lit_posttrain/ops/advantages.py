"""Advantages of sampled responses, as pure functions.

M responses of G groups (a group is the responses to one prompt), N targets (sampled tokens), those of a response
contiguous and in order. A score of NaN means that nobody could say: such a response is in no mean and its advantage
is 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

GroupAdvantage = Literal["grpo", "centered", "rloo"]


def group_advantages(
    score_M: Tensor, group_M: Tensor, groups: int, kind: GroupAdvantage, epsilon: float = 1e-4
) -> Tensor:
    """(M,) in float64: what a response's score S says beside those of its group, n of them scored.

    grpo: (S - mean) / (std + epsilon), std with ddof 1 (Shao et al. 2024). centered: S - mean (Liu et al. 2025,
    Dr. GRPO). rloo: S minus the mean of the others, n/(n-1) * (S - mean) (Ahmadian et al. 2024). A group whose scores
    are all the same gives exactly 0, which rounding in its mean would not; so does a response that is alone.
    """
    score = score_M.double()
    scored = ~score.isnan()
    filled = torch.where(scored, score, 0.0)
    zeros = score.new_zeros(groups)
    count = zeros.index_add(0, group_M, scored.double())
    mean = zeros.index_add(0, group_M, filled) / count.clamp(min=1)
    centered = torch.where(scored & varied_groups(score_M, group_M, groups)[group_M], filled - mean[group_M], 0.0)
    if kind == "centered":
        return centered
    others = (count - 1).clamp(min=1)
    if kind == "rloo":
        return centered * (count / others)[group_M]
    deviation = (zeros.index_add(0, group_M, centered**2) / others).sqrt()
    return centered / (deviation[group_M] + epsilon)


def varied_groups(score_M: Tensor, group_M: Tensor, groups: int) -> Tensor:
    """(G,) bool: True if a group has two different scores; without, it says nothing about its responses."""
    score = score_M.double()
    low = score.new_full((groups,), torch.inf).scatter_reduce(0, group_M, score.nan_to_num(torch.inf), "amin")
    high = score.new_full((groups,), -torch.inf).scatter_reduce(0, group_M, score.nan_to_num(-torch.inf), "amax")
    return high > low


def whiten(values_N: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(N,) (x - mean) / sqrt(var + epsilon), var with ddof 1; of one value 0. To be given all tokens of a step."""
    if len(values_N) < 2:
        return torch.zeros_like(values_N)
    return (values_N - values_N.mean()) / (values_N.var() + epsilon).sqrt()


def gae(
    reward_N: Tensor, value_N: Tensor, owner_N: Tensor, responses: int, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(N,), (N,) advantages and returns (Schulman et al. 2016), in the type of the rewards.

    delta_t = R_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, both 0 behind a response's last target.
    Targets are the sampled tokens alone, so what stands between two of them, such as a tool's answer, is stepped over:
    V and A of the next sampled token are carried across. Returns are A + V.
    """
    place, grid = _grid(owner_N, responses)
    reward, value = (_spread(x, owner_N, place, grid) for x in (reward_N, value_N))
    advantage = torch.zeros_like(reward)
    ahead = reward.new_zeros(responses)
    next_value = reward.new_zeros(responses)
    for step in reversed(range(grid[1])):
        delta = reward[:, step] + gamma * next_value - value[:, step]
        ahead = advantage[:, step] = delta + gamma * lam * ahead
        next_value = value[:, step]
    found = advantage[owner_N, place]
    return found, found + value_N


def _grid(owner_N: Tensor, responses: int) -> tuple[Tensor, tuple[int, int]]:
    """Place of every target within its response, and the shape (M, longest) that holds them all."""
    sizes = owner_N.bincount(minlength=responses)
    place = torch.arange(len(owner_N), device=owner_N.device) - (sizes.cumsum(0) - sizes)[owner_N]
    return place, (responses, int(sizes.max()) if len(owner_N) else 0)


def _spread(values_N: Tensor, owner_N: Tensor, place_N: Tensor, grid: tuple[int, int]) -> Tensor:
    # zeros behind a response's last target, where V and A are 0 and so is all that follows from them
    spread = values_N.new_zeros(grid)
    spread[owner_N, place_N] = values_N
    return spread
