"""Estimators of KL(pi || pi_ref) from d = log pi(y) - log pi_ref(y), in nats (Schulman 2020, "Approximating KL
divergence"). Their means are what the names say for y drawn from pi; on other text they are distances, not a KL. For
figures to watch: as a loss they have the right value and the wrong gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """d itself: unbiased for tokens and, summed, for whole responses; single values may be negative."""
    return log_ratio


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d, never negative, with less variance than d. Unbiased but for the bounds that keep one unlikely
    token from being all of the mean: d within +-20, the value at most 10."""
    bounded = log_ratio.clamp(-20, 20)
    return (torch.expm1(-bounded) + bounded).clamp(-10, 10)


def adapted(coefficient: float, kl: float, target: float, responses: float, horizon: float) -> float:
    """The coefficient that holds a KL near its target: b (1 + clip(KL/target - 1, -0.2, 0.2) n/horizon) after n
    responses (Ziegler et al. 2019), of which no more than the horizon count: it stays positive. kl, target: nats a
    response."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * min(responses / horizon, 1.0))
