"""Preference losses against float64 loops over orders and pairs, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_posttrain.ops import preferences as ops


def rewards(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_response_sums_leave_prompts_out() -> None:
    values, owner = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([-1, 0, 2, 2])
    assert ops.response_sums(values, owner, 3).tolist() == [2.0, 0.0, 12.0]


def test_tokens_beyond_the_shared_length_weigh_less() -> None:
    owner = torch.tensor([-1, 0, 0, 0, 1, 2, 2])
    weights = ops.shared_length_weights(owner, torch.tensor([1, 1, 2]), 0.25)
    assert weights.tolist() == [1, 1, 0.25, 0.25, 1, 1, 1]
    assert ops.shared_length_weights(owner[1:], torch.tensor([2, 2, 2]), 0.0).tolist() == [1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize("h", [-3.0, 0.0, 0.7, 40.0])
def test_pairwise_losses_by_hand(h: float) -> None:
    margin, e = torch.tensor([h], dtype=torch.float64), 0.1
    s = 1 / (1 + math.exp(-h))
    assert ops.logistic(margin).item() == pytest.approx(-log_sigmoid(h), abs=1e-12)
    smooth = -(1 - e) * log_sigmoid(h) - e * log_sigmoid(-h)
    assert ops.logistic(margin, e).item() == pytest.approx(smooth, rel=1e-12)
    assert ops.logistic(margin, torch.tensor([e], dtype=torch.float64)).item() == pytest.approx(smooth, rel=1e-12)
    unbiased = (-(1 - e) * log_sigmoid(h) + e * log_sigmoid(-h)) / (1 - 2 * e)
    assert ops.robust(margin, e).item() == pytest.approx(unbiased, rel=1e-12)
    assert ops.hinge(margin).item() == pytest.approx(max(1 - h, 0))
    zero = torch.zeros(1, dtype=torch.float64)
    assert ops.apo_zero(margin, zero).item() == pytest.approx(1 - s + 0.5)
    other = torch.tensor([0.4], dtype=torch.float64)
    assert ops.apo_down(margin, other).item() == pytest.approx(s + 1 - 1 / (1 + math.exp(0.4 - h)), rel=1e-12)
    assert ops.ipo(margin, zero, 0.1).item() == pytest.approx((h - 5) ** 2)
    assert ops.simpo(margin, zero, 2.0, 0.5).item() == pytest.approx(-log_sigmoid(2 * h - 0.5), abs=1e-12)


def test_robust_undoes_wrong_labels_in_the_mean() -> None:
    h, e = torch.tensor([0.8], dtype=torch.float64), 0.3
    noisy = (1 - e) * ops.robust(h, e) + e * ops.robust(-h, e)
    assert noisy.item() == pytest.approx(ops.logistic(h).item())


@pytest.mark.parametrize("logprob", [-50.0, -5.0, -0.7, -0.69, -1e-3, -1e-12])
def test_log_odds_are_exact_at_both_ends(logprob: float) -> None:
    value = torch.tensor([logprob], dtype=torch.float64, requires_grad=True)
    odds = ops.log_odds(value)
    expected = logprob - math.log(-math.expm1(logprob))
    assert odds.item() == pytest.approx(expected, rel=1e-12)
    odds.sum().backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(-1 / math.expm1(logprob), rel=1e-9)


def test_a_certain_response_has_a_finite_gradient() -> None:
    value = torch.zeros(1, requires_grad=True)
    ops.odds_ratio(value, torch.tensor([-1.0])).sum().backward()
    assert value.grad is not None
    assert torch.isfinite(value.grad).all()


def test_odds_ratio_by_hand() -> None:
    chosen, rejected = torch.tensor([-0.3]), torch.tensor([-1.2])
    p, q = math.exp(-0.3), math.exp(-1.2)
    expected = -log_sigmoid(math.log(p / (1 - p)) - math.log(q / (1 - q)))
    assert ops.odds_ratio(chosen, rejected).item() == pytest.approx(expected, rel=1e-5)


def test_kto_by_hand() -> None:
    loss = ops.kto(torch.tensor([1.0, -0.5]), torch.tensor([1.0, 0.0]), torch.tensor(0.2), 2.0, 3.0)
    s = [1 / (1 + math.exp(-x)) for x in (0.8, 0.7)]
    assert loss.tolist() == pytest.approx([2 * (1 - s[0]), 3 * (1 - s[1])], rel=1e-6)


NONE = math.nan  # where nobody ranked a response
RANKINGS: list[list[float]] = [
    [0, 1],
    [0, 1, 2],
    [2, 0, 1, 3],
    [0, 0, 1],
    [0, 1, 1],
    [1, 0, 0, 1],
    [0, 2, 1, 1, 1],
    [0, 0, 0],
]
RANKINGS += [[0, NONE, 1], [NONE, 0, 0, 1], [0, 0, NONE], [NONE, NONE, 1], [1, NONE, 0, 1, NONE]]


def by_orders(scores: list[float], ranks: list[float]) -> float:
    """The mean of Plackett-Luce's negative log-likelihood over all orders that the ranks allow, of ranked responses."""
    scores = [score for score, rank in zip(scores, ranks, strict=True) if rank == rank]
    ranks = [rank for rank in ranks if rank == rank]
    if len(set(ranks)) < 2:
        return 0.0
    orders = [o for o in permutations(range(len(ranks))) if [ranks[i] for i in o] == sorted(ranks)]
    total = 0.0
    for order in orders:
        for k, item in enumerate(order):
            total += math.log(sum(math.exp(scores[j]) for j in order[k:])) - scores[item]
    return total / len(orders)


@pytest.mark.parametrize("ranks", RANKINGS)
def test_plackett_luce_is_the_mean_over_orders(ranks: list[float]) -> None:
    values = [0.3, -1.1, 2.0, 0.4, -0.2][: len(ranks)]
    losses = ops.plackett_luce(
        rewards(*values, 5.0, 4.0), torch.tensor([*ranks, 0, 1]), torch.tensor([0] * len(ranks) + [1, 1]), 2
    )
    assert losses.tolist() == pytest.approx([by_orders(values, ranks), by_orders([5.0, 4.0], [0, 1])], rel=1e-12)


def all_pairs(reward_M: torch.Tensor, rank_M: torch.Tensor, tree_M: torch.Tensor, trees: int) -> torch.Tensor:
    first, second = ops.preferred_pairs(rank_M, tree_M)
    return ops.prompt_means(ops.logistic(reward_M[first] - reward_M[second]), tree_M[first], trees)


@pytest.mark.parametrize("ranks", RANKINGS)
def test_all_pairs_is_the_mean_over_pairs_of_a_prompt(ranks: list[float]) -> None:
    values = [0.3, -1.1, 2.0, 0.4, -0.2][: len(ranks)]
    losses = all_pairs(rewards(*values), torch.tensor(ranks), torch.zeros(len(ranks), dtype=torch.int64), 1)
    pairs = [
        -log_sigmoid(values[i] - values[j]) if ranks[i] < ranks[j] else -log_sigmoid(values[j] - values[i])
        for i, j in combinations(range(len(ranks)), 2)
        if ranks[i] < ranks[j] or ranks[j] < ranks[i]
    ]
    assert losses.item() == pytest.approx(sum(pairs) / len(pairs) if pairs else 0.0, rel=1e-12)


def test_two_responses_make_all_three_alike() -> None:
    """K = 2: Plackett-Luce, all pairs and Bradley-Terry are one loss, with one gradient."""
    grads, losses = [], []
    tree, rank = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0])
    three: list[Callable[[Tensor], Tensor]] = [
        lambda s: ops.plackett_luce(s, rank, tree, 2).sum(),
        lambda s: all_pairs(s, rank, tree, 2).sum(),
        lambda s: -logsigmoid(torch.stack([s[0] - s[1], s[3] - s[2]])).sum(),
    ]
    for loss in three:
        scores = torch.tensor([0.3, -0.4, 1.5, 0.1], requires_grad=True)
        value = loss(scores)
        value.backward()
        losses.append(value.item())
        assert scores.grad is not None
        grads.append(scores.grad)
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    assert all(torch.allclose(g, grads[0], atol=1e-6) for g in grads)


def test_pairs_of_a_batch_in_order() -> None:
    first, second = ops.preferred_pairs(torch.tensor([1, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1]))
    assert (first.tolist(), second.tolist()) == ([1, 1, 3], [0, 2, 4])


def test_empty_batches_give_empty_losses() -> None:
    none, index = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert ops.plackett_luce(none, index, index, 0).shape == (0,)
    assert all_pairs(none, index, index, 0).shape == (0,)
