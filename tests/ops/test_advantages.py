"""Advantages against numbers worked out by hand, and GAE against a loop in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lit_posttrain.ops.advantages import gae, group_advantages, varied_groups, whiten

NAN = math.nan
SCORES = torch.tensor([1.0, 3.0, 2.0, 6.0, 5.0])  # of groups 0, 0, 0, 1, 1
GROUPS = torch.tensor([0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("centered", [-1.0, 1.0, 0.0, 0.5, -0.5]),
        ("rloo", [1 - 2.5, 3 - 1.5, 2 - 2.0, 6 - 5.0, 5 - 6.0]),
        ("grpo", [-1 / 1.5, 1 / 1.5, 0.0, 0.5 / (math.sqrt(0.5) + 0.5), -0.5 / (math.sqrt(0.5) + 0.5)]),
    ],
)
def test_group_advantages_by_hand(kind: str, expected: list[float]) -> None:
    found = group_advantages(SCORES, GROUPS, 2, kind, epsilon=0.5)  # type: ignore[arg-type]  # a parameter of the test
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["grpo", "centered", "rloo"])
def test_equal_scores_give_exactly_nothing(kind: str) -> None:
    # in float32 the mean of twelve times 0.7 is not 0.7, and divided by the deviation it would make 0.1
    score, group = torch.full((12,), 0.7), torch.zeros(12, dtype=torch.long)
    assert group_advantages(score, group, 1, kind).tolist() == [0.0] * 12  # type: ignore[arg-type]  # see above
    alone = group_advantages(torch.tensor([0.7]), torch.tensor([0]), 1, kind)  # type: ignore[arg-type]  # see above
    assert alone.tolist() == [0.0]


def test_what_has_no_score_is_in_no_mean() -> None:
    score = torch.tensor([1.0, NAN, 3.0, NAN, NAN, 2.0])
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    assert group_advantages(score, group, 3, "centered").tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert group_advantages(score, group, 3, "rloo").tolist() == [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    assert varied_groups(score, group, 3).tolist() == [True, False, False]


def test_whitened_values_have_no_mean_and_unit_deviation() -> None:
    found = whiten(torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([(x - 3) / math.sqrt(7 + 1e-8) for x in (1, 2, 6)], abs=1e-12)
    assert whiten(torch.tensor([5.0])).tolist() == [0.0]


def test_gae_equals_a_loop_that_steps_over_what_nobody_sampled() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = [5, 1, 9, 3]
    gamma, lam = 0.93, 0.81
    rewards, values, owners = [], [], []
    advantages, returns = [], []
    for response, length in enumerate(lengths):
        counted = torch.rand(length, generator=random) < 0.6
        counted[-1] = response != 2  # the last token of one response is a tool's
        counted[0] = True
        reward = torch.randn(length, generator=random, dtype=torch.float64)
        value = torch.randn(length, generator=random, dtype=torch.float64)
        ahead, next_value = 0.0, 0.0
        expected: list[tuple[float, float]] = []
        for t in reversed(range(length)):
            if not counted[t]:
                continue
            delta = float(reward[t]) + gamma * next_value - float(value[t])
            ahead = delta + gamma * lam * ahead
            next_value = float(value[t])
            expected.insert(0, (ahead, ahead + float(value[t])))
        rewards.append(reward[counted])
        values.append(value[counted])
        owners.append(torch.full((int(counted.sum()),), response))
        advantages += [a for a, _ in expected]
        returns += [r for _, r in expected]
    found = gae(torch.cat(rewards), torch.cat(values), torch.cat(owners), len(lengths), gamma, lam)
    assert found[0].tolist() == pytest.approx(advantages, abs=1e-12)
    assert found[1].tolist() == pytest.approx(returns, abs=1e-12)


def test_gae_of_a_response_without_targets() -> None:
    owner = torch.tensor([0, 2, 2])
    advantage, _ = gae(torch.tensor([1.0, 0.0, 2.0]), torch.zeros(3), owner, 4, 1.0, 1.0)
    assert advantage.tolist() == [1.0, 2.0, 2.0]
    empty = torch.zeros(0)
    assert gae(empty, empty, torch.zeros(0, dtype=torch.long), 2, 1.0, 1.0)[0].numel() == 0
