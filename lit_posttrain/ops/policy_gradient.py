"""Policy-gradient losses over sampled tokens, as pure functions: the equation, its source, nothing else.

N targets (sampled tokens) of M responses; logprob is log pi of the policy that is trained (with its graph), old that
of the policy that the step began with, A the advantage of each token. Every function returns one value a token; the
caller sums them and divides by the step's count (`aggregated` says what to sum for which count).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_posttrain.ops.kl import k3

Aggregation = Literal["token", "sequence", "constant"]

_LOG_BOUND = 20.0


def token_ratio(logprob_N: Tensor, old_N: Tensor) -> Tensor:
    """r_t = pi(y_t) / pi_old(y_t), its logarithm kept within +-20 (Schulman et al. 2017)."""
    return (logprob_N - old_N).clamp(-_LOG_BOUND, _LOG_BOUND).exp()


def sequence_ratio(logprob_N: Tensor, old_N: Tensor, owner_N: Tensor, responses: int) -> Tensor:
    """s = exp(mean_t(log pi - log pi_old)) of the token's response, as sg[s] * pi / sg[pi]: one value for the whole
    response, while every token has its own gradient (Zheng et al. 2025, GSPO and its token variant)."""
    log_ratio = logprob_N.detach() - old_N
    zeros = log_ratio.new_zeros(responses)
    count = zeros.index_add(0, owner_N, torch.ones_like(log_ratio)).clamp(min=1)
    mean = (zeros.index_add(0, owner_N, log_ratio) / count).clamp(-_LOG_BOUND, _LOG_BOUND)
    return mean.exp()[owner_N] * (logprob_N - logprob_N.detach()).exp()


def clipped(advantage_N: Tensor, ratio_N: Tensor, low: float, high: float, dual: float | None = None) -> Tensor:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) (Schulman et al. 2017; a higher `high` is DAPO's clip-higher, Yu et al.
    2025). dual: for A < 0 no more than -A * dual, so that a token which the policy now prefers does not rule the step
    (Ye et al. 2020)."""
    loss = torch.maximum(-advantage_N * ratio_N, -advantage_N * ratio_N.clamp(1 - low, 1 + high))
    if dual is None:
        return loss
    return torch.where(advantage_N < 0, torch.minimum(loss, -advantage_N * dual), loss)


def cispo(advantage_N: Tensor, ratio_N: Tensor, logprob_N: Tensor, cap: float) -> Tensor:
    """-sg[min(r, cap)] A log pi (MiniMax 2025, CISPO): the weight is bounded and no token loses its gradient. cap is
    absolute, there is no lower bound."""
    return -ratio_N.detach().clamp(max=cap) * advantage_N * logprob_N


def clip_shares(advantage_N: Tensor, ratio_N: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """(N,), (N,) bool: True if the clip takes a token's gradient at the lower and at the upper end."""
    return (ratio_N < 1 - low) & (advantage_N < 0), (ratio_N > 1 + high) & (advantage_N > 0)


def kl_loss(logprob_N: Tensor, reference_N: Tensor, old_N: Tensor) -> Tensor:
    """A term whose value estimates KL(pi || pi_ref) and whose gradient is that of the KL, off-policy too.

    With d = log pi - log pi_ref the value is r k3(d) = r (exp(-d) - 1 + d) and the gradient r d grad log pi, which
    is that of r k3 through r as well, and that of r d^2 / 2 (k2) with r held. It is written out, because the bounds
    of the value (d within +-20, k3 at most 10) would otherwise leave a gradient of the wrong sign on tokens that the
    policy has become much less likely to say than its reference.
    """
    d = (logprob_N.detach() - reference_N).clamp(-_LOG_BOUND, _LOG_BOUND)
    ratio = token_ratio(logprob_N, old_N).detach()
    return ratio * (k3(d) + d * (logprob_N - logprob_N.detach()))


def value_loss(value_N: Tensor, old_value_N: Tensor, return_N: Tensor, clip: float | None) -> Tensor:
    """0.5 max((V - Ret)^2, (clip(V, V_old - c, V_old + c) - Ret)^2); without a clip 0.5 (V - Ret)^2."""
    loss = (value_N - return_N) ** 2
    if clip is not None:
        near = old_value_N + (value_N - old_value_N).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - return_N) ** 2)
    return 0.5 * loss


def engine_weight(old_N: Tensor, engine_N: Tensor, kind: Literal["tis", "mask"]) -> Tensor:
    """w = pi_old / pi_engine, detached: makes up for an engine that samples from slightly other probabilities than the
    trainer computes. tis: truncated at 2 (Yao et al. 2025). mask: 0 outside 0.5 to 5."""
    weight = (old_N - engine_N).detach().clamp(-_LOG_BOUND, _LOG_BOUND).exp()
    if kind == "tis":
        return weight.clamp(max=2.0)
    return torch.where((weight >= 0.5) & (weight <= 5.0), weight, 0.0)


def aggregated(loss_N: Tensor, owner_N: Tensor, responses: int, how: Aggregation, length: int) -> Tensor:
    """Scalar sum, to be divided by the step's tokens (`token`) or responses (`sequence`, `constant`).

    token: every token weighs the same (DAPO). sequence: every response does, by the mean of its tokens (GRPO).
    constant: a response's sum over `length`, the longest response that is allowed (Dr. GRPO).
    """
    if how == "token":
        return loss_N.sum()
    if how == "constant":
        return loss_N.sum() / length
    zeros = loss_N.new_zeros(responses)
    count = zeros.index_add(0, owner_N, torch.ones_like(loss_N))
    return (zeros.index_add(0, owner_N, loss_N) / count.clamp(min=1)).sum()
