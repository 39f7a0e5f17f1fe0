"""A student's and a teacher's heads for the divergence, and its definition written out in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_posttrain.ops.head import HeadInputs, HeadTransform

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
TRANSFORMS = {
    "plain": (HeadTransform(), HeadTransform()),
    "scaled": (HeadTransform(logit_scale=0.3), HeadTransform(logit_scale=1.4)),
    "capped": (HeadTransform(softcap=2.0), HeadTransform()),
    "both": (HeadTransform(logit_scale=1.7, softcap=3.0), HeadTransform(logit_scale=0.6, softcap=2.5)),
}
N, V, STUDENT_D, TEACHER_D = 23, 37, 8, 5


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


def all_tensors(student: HeadInputs, teacher: HeadInputs) -> list[Tensor]:
    return [*leaves(student), *leaves(teacher)]


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
