"""Estimators of a KL, against numbers worked out by hand and a distribution that is small enough to sum over."""

from __future__ import annotations

import math

import pytest
import torch

from lit_posttrain.ops.kl import adapted, k1, k3


def test_by_hand() -> None:
    log_ratio = torch.tensor([0.0, math.log(2), -math.log(2), 1.0], dtype=torch.float64)
    assert k1(log_ratio).tolist() == log_ratio.tolist()
    expected = [0.0, 0.5 - 1 + math.log(2), 2 - 1 - math.log(2), math.exp(-1)]
    assert k3(log_ratio).tolist() == pytest.approx(expected, abs=1e-12)


def test_bounds() -> None:
    far = torch.tensor([-50.0, -5.0, 8.0, 50.0])
    assert k3(far).tolist() == pytest.approx([10.0, 10.0, 7 + math.exp(-8), 10.0])
    assert k3(torch.tensor([1e-4, -1e-4])).tolist() == pytest.approx([5e-9, 5e-9], rel=0.02)


def test_means_are_the_kl() -> None:
    policy = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    reference = torch.tensor([0.25, 0.25, 0.3, 0.2], dtype=torch.float64)
    divergence = float((policy * (policy / reference).log()).sum())
    log_ratio = (policy / reference).log()
    for estimator in (k1, k3):
        assert float((policy * estimator(log_ratio)).sum()) == pytest.approx(divergence, abs=1e-12)


def test_the_adapted_coefficient_stays_positive_however_many_responses_a_phase_has() -> None:
    assert adapted(0.05, 6.0, 5.0, 500, 1000) == pytest.approx(0.05 * (1 + 0.2 * 0.5))
    assert adapted(0.05, 5.5, 5.0, 500, 1000) == pytest.approx(0.05 * (1 + 0.1 * 0.5))
    assert adapted(0.05, 0.0, 5.0, 8192, 1000) == pytest.approx(0.05 * 0.8)
