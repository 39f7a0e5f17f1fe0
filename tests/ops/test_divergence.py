"""The divergence by rows against plain float64 loops, and against TRL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.heads import BETAS, TRANSFORMS, N, V, all_tensors, assert_near, heads, leaves, logits_of, plain
from torch import Tensor

from lit_posttrain.ops.divergence import divergence
from lit_posttrain.ops.head import HeadInputs, HeadTransform
from lit_posttrain.ops.logprobs import token_logprobs

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("transforms", TRANSFORMS)
def test_values_and_gradients_in_float64(transforms: str, beta: float, temperature: float, with_bias: bool) -> None:
    student, teacher = heads(transforms, with_bias)
    expected = plain(logits_of(student), logits_of(teacher), beta, temperature)
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    expected_gradients = torch.autograd.grad(3 * (expected * weights).sum(), leaves(student))
    found = divergence(student, teacher, beta=beta, temperature=temperature, token_weights_N=weights)
    assert not found.per_token.requires_grad
    assert_near([found.per_token, found.loss], [expected, (expected * weights).sum()], 1e-12)
    assert_near(torch.autograd.grad(3 * found.loss, leaves(student)), expected_gradients, 1e-11)


def test_two_entries_by_hand() -> None:
    student, teacher = (
        HeadInputs(torch.zeros(1, 2)),
        HeadInputs(torch.tensor([[0.9, 0.1]]).log()),
    )  # p = (1/2, 1/2), q = (9/10, 1/10)
    by_hand = {
        0.0: 0.9 * math.log(1.8) + 0.1 * math.log(0.2),
        1.0: 0.5 * math.log(5 / 9) + 0.5 * math.log(5),
        # m = (0.6, 0.4)
        0.25: 0.25 * (0.9 * math.log(1.5) + 0.1 * math.log(0.25))
        + 0.75 * (0.5 * math.log(5 / 6) + 0.5 * math.log(1.25)),
    }
    for beta, expected in by_hand.items():
        assert float(divergence(student, teacher, beta=beta).per_token) == pytest.approx(expected, abs=1e-6)


class Recomputed(torch.autograd.Function):
    """The loss, computed again at every backward: gradcheck asks the same graph several times."""

    @staticmethod
    def forward(ctx: Any, beta: float, *tensors: Tensor) -> Tensor:
        ctx.beta = beta
        ctx.save_for_backward(*tensors)
        return Recomputed.loss(beta, tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors = [tensor.detach().requires_grad_(i < 3) for i, tensor in enumerate(ctx.saved_tensors)]
        with torch.enable_grad():
            loss = Recomputed.loss(ctx.beta, tensors)
        return None, *torch.autograd.grad(loss, tensors[:3], grad), None, None, None

    @staticmethod
    def loss(beta: float, tensors: Sequence[Tensor]) -> Tensor:
        transform = HeadTransform(logit_scale=0.8, softcap=2.0)
        hidden, weight, bias, *others = tensors
        student = HeadInputs(hidden, weight, bias, transform)
        teacher = HeadInputs(others[0], others[1], others[2])
        return divergence(student, teacher, beta=beta, temperature=1.3).loss


@pytest.mark.parametrize("beta", BETAS)
def test_gradcheck(beta: float) -> None:
    student, teacher = heads()
    tensors = [
        tensor.detach()[:9] if i in (0, 3) else tensor.detach()
        for i, tensor in enumerate(all_tensors(student, teacher))
    ]
    for leaf in tensors[:3]:
        leaf.requires_grad_()

    def loss(*given: Tensor) -> Tensor:
        found: Tensor = Recomputed.apply(beta, *given)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return found

    assert torch.autograd.gradcheck(loss, tensors)


@pytest.mark.parametrize("beta", BETAS)
def test_equals_trl_in_float64(beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    student, teacher = heads()
    theirs = GKDTrainer.generalized_jsd_loss(
        logits_of(student)[None], logits_of(teacher)[None], beta=beta, temperature=0.7, reduction="sum"
    )
    expected = torch.autograd.grad(theirs, leaves(student))
    found = divergence(student, teacher, beta=beta, temperature=0.7)
    assert_near([found.loss], [theirs], 1e-12)
    assert_near(torch.autograd.grad(found.loss, leaves(student)), expected, 1e-11)


@pytest.mark.parametrize("beta", BETAS)
def test_equals_trl_distillation_trainer(beta: float) -> None:
    """Its operator computes in float32 whatever it is given; the mask and the denominator are the caller's here."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher = heads("both", dtype=torch.float32)
    mask = torch.arange(N) % 3 != 0
    transforms = {
        f"{name}_{ours}": value
        for name, side in (("student", student), ("teacher", teacher))
        for ours, value in (
            ("logit_scale", side.transform.logit_scale),
            ("final_logit_softcapping", side.transform.softcap),
        )
    }
    theirs, their_entropy, _ = _chunked_divergence_loss(
        student.hidden[None],
        teacher.hidden[None],
        student.weight,
        teacher.weight,
        mask[None],
        beta,
        num_items_in_batch=17,
        student_lm_head_bias=student.bias,
        teacher_lm_head_bias=teacher.bias,
        temperature=1.7,
        **transforms,
    )
    expected = torch.autograd.grad(theirs, leaves(student))
    found = divergence(student, teacher, beta=beta, temperature=1.7, token_weights_N=mask, entropy=True)
    assert found.entropy is not None
    assert_near([found.loss / 17, found.entropy[mask].sum()], [theirs, their_entropy], 2e-6)
    assert_near(torch.autograd.grad(found.loss / 17, leaves(student)), expected, 2e-6)


def test_log_probs_and_entropy_are_those_of_token_logprobs() -> None:
    student, teacher = heads("both")
    targets = torch.randint(V, (N,))
    found = divergence(student, teacher, beta=0.5, temperature=0.7, target_ids_N=targets, entropy=True)
    assert student.weight is not None
    alone = token_logprobs(
        student.hidden,
        student.weight,
        targets,
        student.bias,
        head=student.transform,
        temperature=0.7,
        entropy=True,
    )
    assert alone.entropy is not None
    assert_near([found.logprobs, found.entropy], [alone.logprobs, alone.entropy], 1e-12)
    assert found.logprobs is not None
    assert not found.logprobs.requires_grad


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("whole_student", "whole_teacher"), [(True, True), (True, False), (False, True)])
def test_whole_logits_give_the_same(beta: float, whole_student: bool, whole_teacher: bool) -> None:
    student, teacher = heads("both")
    options: dict[str, Any] = {
        "beta": beta,
        "temperature": 0.7,
        "target_ids_N": torch.randint(V, (N,)),
        "entropy": True,
    }
    by_rows = divergence(student, teacher, **options)
    logits = logits_of(student), logits_of(teacher)
    kept = [whole.detach().clone() for whole in logits]
    sides = [HeadInputs(logits[0]) if whole_student else student, HeadInputs(logits[1]) if whole_teacher else teacher]
    found = divergence(*sides, **options)
    assert_near([*logits], kept, 0)  # the operator works on copies
    for name in ("loss", "per_token", "logprobs", "entropy"):
        assert_near([getattr(found, name)], [getattr(by_rows, name)], 1e-12)
    ours, theirs = (torch.autograd.grad(out.loss, leaves(student), retain_graph=True) for out in (found, by_rows))
    assert_near(ours, theirs, 1e-12)


def test_the_backward_needs_no_weights_and_the_teacher_gets_no_gradient() -> None:
    student, teacher = heads()
    expected = torch.autograd.grad(divergence(student, teacher, beta=0.5).loss, leaves(student))
    for leaf in leaves(teacher):
        leaf.requires_grad_()
    loss = divergence(student, teacher, beta=0.5).loss
    with torch.no_grad():
        for tensor in all_tensors(student, teacher):  # as sharded weights are gone
            tensor.data.fill_(torch.nan)
    loss.backward()
    assert_near([leaf.grad for leaf in leaves(student)], expected, 0)
    assert all(leaf.grad is None for leaf in leaves(teacher))


def test_gradients_are_handed_out_once() -> None:
    student, teacher = heads()
    loss = divergence(student, teacher, beta=1.0).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()
