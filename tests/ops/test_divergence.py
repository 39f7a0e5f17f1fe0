"""The divergence by rows against plain float64 loops, against TRL, and against what it says of its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor

from lit_posttrain.ops import divergence as module
from lit_posttrain.ops.divergence import _Divergence, _Options, divergence
from lit_posttrain.ops.head import HeadInputs, HeadTransform
from lit_posttrain.ops.logprobs import token_logprobs

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
TRANSFORMS = {
    "plain": (HeadTransform(), HeadTransform()),
    "scaled": (HeadTransform(logit_scale=0.3), HeadTransform(logit_scale=1.4)),
    "capped": (HeadTransform(softcap=2.0), HeadTransform()),
    "both": (HeadTransform(logit_scale=1.7, softcap=3.0), HeadTransform(logit_scale=0.6, softcap=2.5)),
}
N, V, STUDENT_D, TEACHER_D = 23, 37, 8, 5


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # float64: at most 5 rows at a time, in blocks of 2, the head in parts of at most 8 entries: none divides the whole
    monkeypatch.setattr(module, "_CPU_SIZES", (2 * 5 * V * 8, 2 * V * 8, 8))


def heads(
    transforms: str = "plain", with_bias: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[HeadInputs, HeadInputs]:
    """A student's and a teacher's hidden states and heads, of different widths; the student's are leaves."""
    torch.manual_seed(0)
    sides = []
    for width, transform in zip((STUDENT_D, TEACHER_D), TRANSFORMS[transforms], strict=True):
        hidden, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((N, width), (V, width), (V,)))
        sides.append(HeadInputs(hidden, weight, bias if with_bias else None, transform))
    for leaf in leaves(sides[0]):
        leaf.requires_grad_()
    return sides[0], sides[1]


def leaves(side: HeadInputs) -> list[Tensor]:
    return [tensor for tensor in (side.hidden, side.weight, side.bias) if tensor is not None]


def logits_of(side: HeadInputs) -> Tensor:
    """Whole logits, written out."""
    assert side.weight is not None
    logits = torch.nn.functional.linear(side.hidden, side.weight, side.bias) * side.transform.logit_scale
    cap = side.transform.softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return sum((a.exp() * (a - b) for a, b in zip(log_a, log_b, strict=True)), torch.zeros(()))


def plain(student_NV: Tensor, teacher_NV: Tensor, beta: float, temperature: float) -> Tensor:
    """(N,) divergences as their definition has them, token by token and entry by entry."""
    found = []
    for student, teacher in zip(student_NV, teacher_NV, strict=True):
        p, q = torch.log_softmax(student / temperature, 0), torch.log_softmax(teacher / temperature, 0)
        if beta == 0:
            found.append(kl(q, p))
        elif beta == 1:
            found.append(kl(p, q))
        else:
            mixture = torch.logaddexp(p + math.log(1 - beta), q + math.log(beta))
            found.append(beta * kl(q, mixture) + (1 - beta) * kl(p, mixture))
    return torch.stack(found)


def assert_near(mine: Sequence[Tensor | None], theirs: Sequence[Tensor], tolerance: float) -> None:
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


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
        student, teacher = HeadInputs(*tensors[:3], transform), HeadInputs(*tensors[3:])
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
    assert torch.autograd.gradcheck(lambda *given: Recomputed.apply(beta, *given), tensors)


def all_tensors(student: HeadInputs, teacher: HeadInputs) -> list[Tensor]:
    return [*leaves(student), *leaves(teacher)]


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
    gradients = [torch.autograd.grad(out.loss, leaves(student), retain_graph=True) for out in (found, by_rows)]
    assert_near(*gradients, 1e-12)


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
    _, _, logprobs, _ = _Divergence.apply(*leaves(student), student.transform, teacher, unchecked)
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


@pytest.mark.parametrize("beta", BETAS)
def test_bf16_mixed_keeps_float32_gradients(beta: float) -> None:
    student, teacher = heads(dtype=torch.float32)
    exact = [HeadInputs(*(leaf.double() for leaf in leaves(side))) for side in (student, teacher)]
    expected = plain(logits_of(exact[0]), logits_of(exact[1]), beta, 1.0)
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


def peak(student: HeadInputs, teacher: HeadInputs, *, rows: int | None = None, backward: bool = True) -> int:
    with LiveBytes([torch.nn.Parameter(leaf, leaf.requires_grad) for leaf in all_tensors(student, teacher)]) as live:
        with torch.set_grad_enabled(backward):
            found = divergence(
                student, teacher, beta=0.5, target_ids_N=torch.zeros(len(student.hidden)).long(), rows=rows
            )
        if backward:
            found.loss.backward()
    return live.peak


def large(vocabulary: int, tokens: int, width: int, frozen: bool) -> tuple[HeadInputs, HeadInputs]:
    hidden = torch.randn(tokens, width, requires_grad=True)
    student = HeadInputs(hidden, torch.randn(vocabulary, width, requires_grad=not frozen))
    return student, HeadInputs(torch.randn(tokens, width), torch.randn(vocabulary, width))


@pytest.mark.parametrize("frozen", [True, False])
def test_no_matrix_of_logits_is_made(frozen: bool) -> None:
    tokens, vocabulary, width = 128, 4096, 8
    matrix = 4 * tokens * vocabulary
    head = 4 * vocabulary * width
    found = peak(*large(vocabulary, tokens, width, frozen), rows=4)
    assert found < matrix / 4 + (not frozen) * head
    whole = [logits_of(side) for side in large(vocabulary, tokens, width, frozen)]
    with LiveBytes([]) as live:
        divergence(HeadInputs(whole[0]), HeadInputs(whole[1]), beta=0.5).loss.backward()
    assert live.peak > matrix  # the gradient of logits that were given whole


def test_a_frozen_head_costs_nothing_and_validation_no_gradient() -> None:
    tokens, vocabulary, width = 4, 512, 1024
    head = 4 * vocabulary * width
    assert peak(*large(vocabulary, tokens, width, frozen=True), rows=1) < head / 8
    trained = large(vocabulary, tokens, width, frozen=False)
    assert peak(*trained, rows=1, backward=False) < head / 8
    assert head < peak(*trained, rows=1) < 1.25 * head  # the gradient, once


@pytest.mark.parametrize("mixed", [False, True])
def test_the_vocabulary_costs_no_memory(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_SIZES", (1 << 20, 1 << 17, 256))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        few, many = (peak(*large(vocabulary, 128, 64, frozen=True)) for vocabulary in (4096, 16_384))
    assert many < 1.05 * few
