"""Losses over preferred and rejected responses, as pure functions: the equation, its source, nothing else.

P pairs, M responses, N targets (tokens), G trees (prompts). A reward of a response is a score S of a reward model, or
the implicit reward beta * D with D = sum_t log pi(y_t) - log pi_ref(y_t) (Rafailov et al. 2023). Every function returns
one value an element; the caller sums them and divides by the step's count.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def response_sums(values_N: Tensor, target_response_N: Tensor, responses: int) -> Tensor:
    """(M,) sums of the targets' values per response. Targets of a prompt (-1) are left out."""
    own = target_response_N >= 0
    zeros = values_N.new_zeros(responses)
    return zeros.index_add(0, target_response_N[own], values_N[own])


def shared_length_weights(target_response_N: Tensor, shared_M: Tensor, alpha: float) -> Tensor:
    """(N,) 1 for the first `shared_M` targets of a response and alpha for those behind them (Liu et al. 2024,
    length-desensitised DPO: shared_M is the shorter length of its pair). Targets stand in the order of their responses.
    """
    responses = torch.arange(len(shared_M), device=target_response_N.device)
    first = torch.searchsorted(target_response_N, responses)
    owner = target_response_N.clamp(min=0)
    place = torch.arange(len(owner), device=owner.device) - first[owner]
    return torch.where((target_response_N >= 0) & (place >= shared_M[owner]), alpha, 1.0)


def logistic(margin_P: Tensor, flipped: Tensor | float = 0.0) -> Tensor:
    """-(1-e) log s(h) - e log s(-h). e = 0 is Bradley-Terry and DPO's sigmoid; e > 0 the conservative one; a tensor e
    holds soft labels, the probability that the second response is the better one."""
    return -(1 - flipped) * logsigmoid(margin_P) - flipped * logsigmoid(-margin_P)


def robust(margin_P: Tensor, flipped: float) -> Tensor:
    """[-(1-e) log s(h) + e log s(-h)] / (1-2e): unbiased when a share e < 1/2 of labels is wrong (Chowdhury et al.
    2024)."""
    return (-(1 - flipped) * logsigmoid(margin_P) + flipped * logsigmoid(-margin_P)) / (1 - 2 * flipped)


def hinge(margin_P: Tensor) -> Tensor:
    """relu(1 - h) (Zhao et al. 2023, SLiC)."""
    return torch.relu(1 - margin_P)


def ipo(mean_ratio_w_P: Tensor, mean_ratio_l_P: Tensor, beta: float) -> Tensor:
    """(D_w/|y_w| - D_l/|y_l| - 1/(2 beta))^2 (Azar et al. 2023), on means per token."""
    return (mean_ratio_w_P - mean_ratio_l_P - 1 / (2 * beta)) ** 2


def apo_zero(reward_w_P: Tensor, reward_l_P: Tensor) -> Tensor:
    """1 - s(beta D_w) + s(beta D_l): the chosen response up, the rejected one down (D'Oosterlinck et al. 2024)."""
    return 1 - torch.sigmoid(reward_w_P) + torch.sigmoid(reward_l_P)


def apo_down(reward_w_P: Tensor, reward_l_P: Tensor) -> Tensor:
    """s(beta D_w) + 1 - s(beta (D_w - D_l)): both down, the rejected one further (D'Oosterlinck et al. 2024)."""
    return torch.sigmoid(reward_w_P) + 1 - torch.sigmoid(reward_w_P - reward_l_P)


def simpo(mean_logprob_w_P: Tensor, mean_logprob_l_P: Tensor, beta: float, gamma: float) -> Tensor:
    """-log s(beta (avg_w - avg_l) - gamma), avg the mean log pi per token (Meng et al. 2024)."""
    return -logsigmoid(beta * (mean_logprob_w_P - mean_logprob_l_P) - gamma)


def odds_ratio(mean_logprob_w_P: Tensor, mean_logprob_l_P: Tensor) -> Tensor:
    """-log s(log odds_w - log odds_l), odds = p/(1-p) of the length-averaged p (Hong et al. 2024, ORPO)."""
    return -logsigmoid(log_odds(mean_logprob_w_P) - log_odds(mean_logprob_l_P))


def log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1-p)) of log p <= 0, exact for p near 0 and near 1; a p that rounds to 1 counts as the next number below
    it, or its gradient would be none."""
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    near_one = logprob > -0.6931471805599453
    safe_near = torch.where(near_one, logprob, -1.0)  # keeps the branch not taken, and its gradient, finite
    safe_far = torch.where(near_one, -1.0, logprob)
    log_rest = torch.where(near_one, torch.log(-torch.expm1(safe_near)), torch.log1p(-torch.exp(safe_far)))
    return logprob - log_rest


def kto(
    reward_M: Tensor, desirable_M: Tensor, baseline: Tensor, weight_w: float = 1.0, weight_l: float = 1.0
) -> Tensor:
    """w_d (1 - s(beta D - z)) for desirable responses, w_u (1 - s(z - beta D)) for the others (Ethayarajh et al. 2024).
    desirable_M: 1 for desirable, 0 for the others, between them a mixture. baseline: z, scalar, detached: beta times
    the mean D of responses to other prompts over the whole step, at least 0."""
    good = weight_w * (1 - torch.sigmoid(reward_M - baseline))
    bad = weight_l * (1 - torch.sigmoid(baseline - reward_M))
    return desirable_M * good + (1 - desirable_M) * bad


def preferred_pairs(rank_M: Tensor, tree_M: Tensor) -> tuple[Tensor, Tensor]:
    """(P,), (P,) indices of all pairs of responses to the same prompt, the one with the lower (better) rank first;
    pairs of equal rank are left out. In the order of the first and then of the second response."""
    better = (tree_M[:, None] == tree_M[None, :]) & (rank_M[:, None] < rank_M[None, :])
    first, second = better.nonzero(as_tuple=True)
    return first, second


def prompt_means(losses_P: Tensor, tree_P: Tensor, trees: int) -> Tensor:
    """(G,) the mean of a prompt's pairs (Ouyang et al. 2022, over -log s(S_w - S_l)): a prompt is one element, however
    many responses it has. A prompt without a pair gives 0."""
    zeros = losses_P.new_zeros(trees)
    count = zeros.index_add(0, tree_P, torch.ones_like(losses_P))
    return zeros.index_add(0, tree_P, losses_P) / count.clamp(min=1)


def plackett_luce(reward_M: Tensor, rank_M: Tensor, tree_M: Tensor, trees: int) -> Tensor:
    """(G,) sum_k [logsumexp(S of ranks k and worse) - S_k] (Plackett 1975), the mean over the orders of tied responses.

    A prompt whose responses are all tied is no preference and gives 0. Responses without a rank (NaN) are left out. Of
    r tied responses still to be placed every subset of that size is equally likely, so that 2^ties sums stand for all
    the orders.
    """
    losses = [
        _plackett_luce(reward_M[mine], rank_M[mine])
        for mine in (torch.nonzero(tree_M == tree).flatten() for tree in range(trees))
    ]
    return torch.stack(losses) if losses else reward_M[:0]  # with its graph: other ranks wait for a backward


def _plackett_luce(reward: Tensor, rank: Tensor) -> Tensor:
    total = reward.sum() * 0.0
    order = torch.unique(rank[~rank.isnan()])
    if len(order) < 2:
        return total
    for value in order:
        tied = torch.nonzero(rank == value).flatten().tolist()
        worse = torch.nonzero(rank > value).flatten().tolist()
        for size in range(1, len(tied) + 1):
            left = [torch.logsumexp(reward[[*chosen, *worse]], 0) for chosen in combinations(tied, size)]
            total = total + torch.stack(left).mean()
        total = total - reward[tied].sum()
    return total
