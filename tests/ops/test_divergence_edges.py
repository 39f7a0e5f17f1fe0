"""The divergence where it could go wrong: padded and missing rows, extreme logits, low precision, wrong arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers.heads import BETAS, TEACHER_D, N, V, assert_near, heads, leaves, logits_of, plain

from lit_posttrain.ops.divergence import _Divergence, _Options, divergence
from lit_posttrain.ops.head import HeadInputs

pytestmark = pytest.mark.usefixtures("small_parts")


@pytest.mark.parametrize("beta", BETAS)
def test_a_vocabulary_that_heads_were_padded_beyond(beta: float) -> None:
    student, teacher = heads()
    padded = HeadInputs(teacher.hidden, torch.randn(V + 4, TEACHER_D, dtype=torch.float64))
    real = 35
    expected = plain(logits_of(student)[:, :real], logits_of(padded)[:, :real], beta, 1.0)
    gradients = torch.autograd.grad(expected.sum(), leaves(student))
    for given in (student, HeadInputs(logits_of(student))):
        found = divergence(given, padded, beta=beta, vocabulary=real)
        assert_near([found.per_token], [expected], 1e-12)
        mine = torch.autograd.grad(found.loss, leaves(student))
        assert_near(mine, gradients, 1e-11)
        assert not mine[1][real:].any()
        assert not mine[2][real:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.5}, "beta is 1.5; it must be between 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"vocabulary": 38}, "vocabulary is 38; the student has 37 entries and the teacher 37"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        (
            {"teacher": HeadInputs(torch.zeros(N, V + 1))},
            "37 entries and the teacher's 38; .* pass its number of tokens",
        ),
        ({"teacher": HeadInputs(torch.zeros(N - 1, V))}, "the student has 23 rows and the teacher 22"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    student, teacher = heads()
    with pytest.raises(ValueError, match=message):
        divergence(student, **{"teacher": teacher, "beta": 0.5, **options})


@pytest.mark.parametrize("wrong", [-1, 37])
def test_a_target_outside_the_vocabulary(wrong: int) -> None:
    student, teacher = heads()
    targets = torch.zeros(N, dtype=torch.long)
    targets[3] = wrong
    with pytest.raises(IndexError, match="outside the vocabulary of 37"):
        divergence(student, teacher, beta=0.5, target_ids_N=targets)
    unchecked = _Options(0.5, 1.0, None, targets, False, V, None, False)  # as on a GPU
    _, _, logprobs, _ = _Divergence.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        *leaves(student), student.transform, teacher, unchecked
    )
    assert logprobs.isnan().tolist() == [i == 3 for i in range(N)]


@pytest.mark.parametrize("beta", BETAS)
def test_no_rows_keep_the_graph(beta: float) -> None:
    student, teacher = heads()
    none = [HeadInputs(side.hidden[:0], side.weight, side.bias) for side in (student, teacher)]
    found = divergence(none[0], none[1], beta=beta, target_ids_N=torch.zeros(0, dtype=torch.long), entropy=True)
    found.loss.backward()
    assert float(found.loss.detach()) == 0
    for leaf in leaves(student):
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", BETAS)
def test_logits_of_ten_thousand(beta: float, dtype: torch.dtype) -> None:
    student = torch.randn(N, V, dtype=dtype).sign() * 1e4
    teacher = torch.randn(N, V, dtype=dtype).sign() * 1e4
    student.requires_grad_()
    found = divergence(HeadInputs(student), HeadInputs(teacher), beta=beta, entropy=True)
    expected = plain(student.double(), teacher.double(), beta, 1.0)
    assert_near([found.per_token.double()], [expected.detach()], 1e-6)
    (gradient,) = torch.autograd.grad(found.loss, [student])
    (theirs,) = torch.autograd.grad(expected.sum(), [student])
    torch.testing.assert_close(gradient, theirs, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("beta", BETAS)
def test_probabilities_of_exactly_zero(beta: float) -> None:
    """Entries that both sides rule out are as good as absent; a teacher that is sure of one token leaves no NaN."""
    student, teacher = (logits_of(side).detach() for side in heads())
    short = student[:, :30].clone().requires_grad_()
    expected = divergence(HeadInputs(short), HeadInputs(teacher[:, :30]), beta=beta)
    student[:, 30:] = teacher[:, 30:] = -torch.inf
    student.requires_grad_()
    found = divergence(HeadInputs(student), HeadInputs(teacher), beta=beta, entropy=True)
    assert_near([found.per_token], [expected.per_token], 1e-12)
    (a,), (b,) = torch.autograd.grad(found.loss, [student]), torch.autograd.grad(expected.loss, [short])
    assert_near([a], [torch.nn.functional.pad(b, (0, 7))], 1e-12)

    one_hot = torch.full((N, V), -torch.inf, dtype=torch.float64)
    one_hot[:, 4] = 0.0
    found = divergence(HeadInputs(student), HeadInputs(one_hot), beta=beta)
    (gradient,) = torch.autograd.grad(found.loss, [student])
    assert gradient.isfinite().all()
    log_p = torch.log_softmax(student.detach(), 1)[:, 4]
    if beta == 0:  # cross-entropy
        assert_near([found.per_token], [-log_p], 1e-12)
    elif beta == 1:  # infinite: the student may say what the teacher never does
        assert bool((found.per_token > 1e28).all())
    else:
        p = log_p.exp()
        of_student = p * (log_p - ((1 - beta) * p + beta).log()) - (1 - p) * math.log(1 - beta)
        assert_near([found.per_token], [-beta * ((1 - beta) * p + beta).log() + (1 - beta) * of_student], 1e-12)


def in_double(side: HeadInputs) -> HeadInputs:
    hidden, weight, bias = (leaf.double() for leaf in leaves(side))
    return HeadInputs(hidden, weight, bias, side.transform)


@pytest.mark.parametrize("beta", BETAS)
def test_bf16_mixed_keeps_float32_gradients(beta: float) -> None:
    student, teacher = heads(dtype=torch.float32)
    expected = plain(logits_of(in_double(student)), logits_of(in_double(teacher)), beta, 1.0)
    gradients = torch.autograd.grad(expected.sum(), leaves(student))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = divergence(student, teacher, beta=beta)
    found.loss.backward()
    assert found.per_token.dtype == torch.float32
    torch.testing.assert_close(found.per_token.double(), expected.detach(), atol=0.06, rtol=0.03)
    for leaf, theirs in zip(leaves(student), gradients, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        assert float((leaf.grad - theirs).norm() / theirs.norm()) < 0.02


def test_gradients_of_bf16_weights_are_rounded_once() -> None:
    """Rows come in eight parts; summed in bfloat16, seven of them would be lost beside the first."""
    hidden = torch.tensor([[256.0]] + [[1.0]] * 7, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)  # p = (1/2, 1/2)
    teacher = torch.tensor([[1e4, 0.0]]).expand(8, 2)  # q = (1, 0)
    divergence(HeadInputs(hidden, weight), HeadInputs(teacher), beta=0.0, rows=1).loss.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [-132.0, 132.0]  # 131.5, of which bfloat16 keeps eight bits
