"""Policy-gradient losses against numbers worked out by hand, and the gradient of a KL term against the KL's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_posttrain.ops import policy_gradient as pg

LOGPROB = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
OLD = torch.tensor([-1.0, -2.5, -0.2], dtype=torch.float64)
OWNER = torch.tensor([0, 0, 1])


def test_ratios_by_hand() -> None:
    assert pg.token_ratio(LOGPROB, OLD).tolist() == pytest.approx([1.0, math.exp(0.5), math.exp(-0.3)])
    assert pg.sequence_ratio(LOGPROB, OLD, OWNER, 2).tolist() == pytest.approx(
        [math.exp(0.25), math.exp(0.25), math.exp(-0.3)]
    )
    far = torch.tensor([30.0, -30.0])
    assert pg.token_ratio(far, torch.zeros(2)).tolist() == pytest.approx([math.exp(20), math.exp(-20)])


def test_a_sequence_ratio_has_the_gradient_of_its_definition() -> None:
    spread, whole = LOGPROB.clone().requires_grad_(), LOGPROB.clone().requires_grad_()
    per_token = pg.sequence_ratio(spread, OLD, OWNER, 2)
    pg.aggregated(per_token, OWNER, 2, "sequence", 1).backward()
    ((whole[:2] - OLD[:2]).mean().exp() + (whole[2] - OLD[2]).exp()).backward()
    assert spread.grad is not None
    assert whole.grad is not None
    assert spread.grad.tolist() == pytest.approx(whole.grad.tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual", "expected"),
    [
        (2.0, 1.1, None, -2.2),  # inside
        (2.0, 1.5, None, -2.56),  # good and likely enough: no more than 1.28
        (2.0, 0.5, None, -1.0),  # good and less likely: no bound
        (-2.0, 0.5, None, 1.6),  # bad and unlikely enough: no less than 0.8
        (-2.0, 1.5, None, 3.0),  # bad and more likely: no bound
        (-2.0, 9.0, 3.0, 6.0),  # unless there is a dual one
        (2.0, 9.0, 3.0, -2.56),
    ],
)
def test_clipped_by_hand(advantage: float, ratio: float, dual: float | None, expected: float) -> None:
    found = pg.clipped(torch.tensor([advantage]), torch.tensor([ratio]), 0.2, 0.28, dual)
    assert found.tolist() == pytest.approx([expected])
    low, high = pg.clip_shares(torch.tensor([advantage]), torch.tensor([ratio]), 0.2, 0.28)
    assert bool(low) == (expected == 1.6)
    assert bool(high) == (expected == -2.56)


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    logprob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = pg.cispo(torch.tensor([2.0, -1.0]), torch.tensor([7.0, 0.5]), logprob, cap=5.0)
    assert loss.tolist() == pytest.approx([10.0, -1.0])
    loss.sum().backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-10.0, 0.5])


def test_value_loss_by_hand() -> None:
    value, old, back = torch.tensor([2.0, 0.1]), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0])
    assert pg.value_loss(value, old, back, None).tolist() == pytest.approx([0.5, 0.405])
    # 2.0 is clipped to 1.2, further from 3; 0.1 is inside
    assert pg.value_loss(value, old, back, 0.2).tolist() == pytest.approx([0.5 * 1.8**2, 0.405])
    # a clipped value that comes nearer to its return does not make the loss smaller
    assert pg.value_loss(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([1.1]), 0.2).tolist() == pytest.approx(
        [0.405]
    )


def test_engine_weights_by_hand() -> None:
    old = torch.tensor([0.0, 0.0, 0.0, 0.0], requires_grad=True)
    engine = -torch.tensor([0.4, 1.5, 6.0, 1.0]).log()
    assert pg.engine_weight(old, engine, "tis").tolist() == pytest.approx([0.4, 1.5, 2.0, 1.0])
    assert pg.engine_weight(old, engine, "mask").tolist() == pytest.approx([0.0, 1.5, 0.0, 1.0])
    assert not pg.engine_weight(old, engine, "mask").requires_grad


def test_aggregations_by_hand() -> None:
    loss = torch.tensor([1.0, 3.0, 5.0])
    assert float(pg.aggregated(loss, OWNER, 3, "token", 10)) == 9.0
    assert float(pg.aggregated(loss, OWNER, 3, "sequence", 10)) == 2.0 + 5.0
    assert float(pg.aggregated(loss, OWNER, 3, "constant", 10)) == pytest.approx(0.9)


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("third", [-0.7, -4.0])  # -4: d of the third token is -4.6, where k3 is above its bound of 10
def test_the_kl_term_has_the_gradient_of_the_kl(off_policy: bool, third: float) -> None:
    """In expectation over all of four tokens, drawn from the old policy."""
    logits = torch.tensor([0.5, 0.1, third, 0.2], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.3, 2.0, -0.4], dtype=torch.float64).log_softmax(0)
    shift = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64) * off_policy
    old = (logits.detach() + shift).log_softmax(0)

    def gradient(loss: Tensor) -> list[float]:
        (found,) = torch.autograd.grad(loss, logits)
        return found.tolist()

    logprob = logits.log_softmax(0)
    expected = gradient((logprob.exp() * (logprob - reference)).sum())
    logprob = logits.log_softmax(0)
    term = pg.kl_loss(logprob, reference, old)
    assert gradient((old.exp() * term).sum()) == pytest.approx(expected, abs=1e-12)
    plain = logits.log_softmax(0)
    naive = (old.exp() * (torch.expm1(reference - plain) + plain - reference)).sum()
    assert gradient(naive) != pytest.approx(expected, abs=1e-3), "k3 alone would do, and the test would prove nothing"
