"""Divergence of a student's next-token distribution from a teacher's over the whole vocabulary, without a logits
matrix (Agarwal et al. 2024, "On-Policy Distillation of Language Models").

With p of the student, q of the teacher, and the mixture m = (1 - beta) p + beta q:

    beta = 0        KL(q || p), forward: the student covers whatever the teacher may say
    beta = 1        KL(p || q), reverse: the student keeps to what the teacher says most
    0 < beta < 1    beta KL(q || m) + (1 - beta) KL(p || m), generalised Jensen-Shannon, at most log 2

This is the convention of TRL 1.16's DistillationTrainer. The Jensen-Shannon divergence vanishes towards both ends, as
beta KL(q || p) and as (1 - beta) KL(p || q): beta = 0.01 is not close to the forward KL. The temperature divides the
logits of both sides after their transforms; the divergence is not multiplied by its square, as Hinton et al. 2015 do.

A few rows of both models' logits exist at a time. While they do, their gradient is computed too, so that nothing is
projected twice and the backward needs no weights of either model (docs/decisions.md, "Distillation computes its
gradients in the forward").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_posttrain.ops.head import (
    HeadInputs,
    HeadTransform,
    accumulate,
    check_targets,
    head_parts,
    places,
    shape_logits,
    slices,
)

# Bytes of both models' logits that exist at a time; bytes of the block of them that one elementwise operation works on
# (on CPU what the cache holds); vocabulary entries of the heads that are cast and multiplied at a time.
_CPU_SIZES = (128 << 20, 2 << 20, 2048)
_GPU_SIZES = (512 << 20, 64 << 20, 8192)

# Log-probability of an entry whose logit is -inf: its probability is 0 all the same, and 0 times it is no NaN.
_LOG_ZERO = -1e30


@dataclass
class Divergence:
    """loss: scalar, the sum over tokens of token weight times divergence, differentiable. per_token: (N,) divergences
    in nats, detached. logprobs, entropy: (N,) of the student where they were asked for, detached, at the temperature
    and over the entries that are compared."""

    loss: Tensor
    per_token: Tensor
    logprobs: Tensor | None = None
    entropy: Tensor | None = None


def divergence(
    student: HeadInputs,
    teacher: HeadInputs,
    *,
    beta: float,
    temperature: float = 1.0,
    token_weights_N: Tensor | None = None,
    target_ids_N: Tensor | None = None,
    entropy: bool = False,
    vocabulary: int | None = None,
    rows: int | None = None,
) -> Divergence:
    """Divergence of N next-token distributions; differentiable, once, in the student's hidden states, head weight and
    bias. Under autocast the matmuls run in its dtype; everything after them is float32 (float64 if a side is float64).

    Args:
        student: Hidden states and head, or whole logits.
        teacher: Likewise; its hidden states may have another width. It gets no gradient.
        beta: 0 is the forward KL, 1 the reverse KL, between them the generalised Jensen-Shannon divergence.
        temperature: Divides the logits of both sides.
        token_weights_N: (N,) weights of the tokens in the loss, constants; None is 1 for each. Keep them near 1 and
            divide the loss instead: where products are float16 the gradients of small weights are rounded to 0.
        target_ids_N: (N,) tokens of which to return the student's log-probabilities.
        entropy: Return the student's entropy.
        vocabulary: Compare the first `vocabulary` entries alone, both distributions normalised over them: for models
            with the same tokenizer whose heads are padded to different sizes, its number of tokens. The student's
            entries beyond get no gradient.
        rows: Rows of logits that exist at a time; the default suits the device.

    Raises:
        ValueError: if beta is outside [0, 1], the temperature is not positive, the sides differ in rows, or they differ
            in entries and `vocabulary` does not say how many they share.
        IndexError: on CPU, if a target is not in the vocabulary. On GPUs, where looking would cost a synchronisation,
            its log-probability is NaN.
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta is {beta}; it must be between 0 (forward KL) and 1 (reverse KL)")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if len(student) != len(teacher):
        raise ValueError(f"the student has {len(student)} rows and the teacher {len(teacher)}")
    entries = _shared_entries(student.entries, teacher.entries, vocabulary)
    if target_ids_N is not None:
        check_targets(target_ids_N, entries)
    differentiable = torch.is_grad_enabled()
    options = _Options(beta, temperature, token_weights_N, target_ids_N, entropy, entries, rows, differentiable)
    found = _Divergence.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        student.hidden, student.weight, student.bias, student.transform, teacher, options
    )
    return Divergence(*found)


def _shared_entries(student: int, teacher: int, vocabulary: int | None) -> int:
    """Number of entries that are compared."""
    if vocabulary is None:
        if student != teacher:
            raise ValueError(
                f"the student's head has {student} entries and the teacher's {teacher}; if both have the same"
                " tokenizer, pass its number of tokens as `vocabulary`"
            )
        return student
    if not 0 < vocabulary <= min(student, teacher):
        raise ValueError(f"vocabulary is {vocabulary}; the student has {student} entries and the teacher {teacher}")
    return vocabulary


@dataclass(frozen=True)
class _Options:
    beta: float
    temperature: float
    token_weights: Tensor | None
    targets: Tensor | None
    entropy: bool
    entries: int
    rows: int | None
    differentiable: bool


class _Gradients:
    """Those of a student's hidden states, weight and bias that are wanted, the others None; sums over rows are kept in
    full precision and rounded once, at the end."""

    def __init__(self, side: HeadInputs, wanted: Sequence[bool], precise: torch.dtype) -> None:
        tensors = (side.hidden, side.weight, side.bias)
        self.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        self.hidden, self.weight, self.bias = (
            torch.zeros_like(tensor, dtype=precise) if tensor is not None and want else None
            for tensor, want in zip(tensors, wanted, strict=True)
        )

    def add(self, side: HeadInputs, rows: slice, grad: Tensor, part_size: int) -> None:
        """Take in the gradient (n, V) of the logits of `rows`, before the transform; side: as it was projected."""
        entries = grad.shape[1]
        if self.bias is not None:
            self.bias[:entries] += grad.sum(0)
        if side.weight is None:
            if self.hidden is not None:
                self.hidden[rows, :entries] = grad
            return
        for part, weight, _ in head_parts(side.weight, None, side.hidden.dtype, part_size):
            cast = grad[:, part].to(side.hidden.dtype)
            if self.hidden is not None:
                accumulate(self.hidden[rows], cast, weight)
            if self.weight is not None:
                accumulate(self.weight[part], cast.t(), side.hidden[rows])

    def hand_out(self, factor: Tensor) -> list[Tensor | None]:
        """The gradients times `factor`, in the types of their tensors and in the memory they were summed in."""
        found = zip((self.hidden, self.weight, self.bias), self.dtypes, strict=True)
        return [None if grad is None else grad.mul_(factor).to(dtype) for grad, dtype in found]


class _Divergence(torch.autograd.Function):
    # Autocast is handled by hand, as in _TiledLogprobs.
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        transform: HeadTransform,
        teacher: HeadInputs,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        count, entries, targets = len(hidden), options.entries, options.targets
        precise = torch.promote_types(torch.promote_types(hidden.dtype, teacher.hidden.dtype), torch.float32)
        both_bytes, block_bytes, part_size = _CPU_SIZES if hidden.device.type == "cpu" else _GPU_SIZES
        row_bytes = entries * precise.itemsize
        most = options.rows or max(both_bytes // (2 * row_bytes), 1)

        wanted = [options.differentiable and needed for needed in ctx.needs_input_grad[:3]]
        student = HeadInputs(hidden, weight, bias, transform)
        gradients = _Gradients(student, wanted, precise) if any(wanted) else None
        student, teacher = student.cast(entries), teacher.cast(entries)
        per_token = hidden.new_empty(count, dtype=precise)
        logprobs = None if targets is None else torch.empty_like(per_token)
        entropies = torch.empty_like(per_token) if options.entropy else None
        weights = torch.ones_like(per_token) if options.token_weights is None else options.token_weights.to(precise)
        factor = weights * (transform.logit_scale / options.temperature)

        buffers = hidden.new_empty((2, min(most, count), entries), dtype=precise)
        for rows in slices(count, most):
            ours, theirs = buffers[:, : rows.stop - rows.start]
            student.write_logits(rows, ours, part_size)
            teacher.write_logits(rows, theirs, part_size)
            for block in slices(len(ours), max(block_bytes // row_bytes, 1)):
                here = slice(rows.start + block.start, rows.start + block.stop)
                shaped, slope = shape_logits(ours[block], transform, options.temperature)
                log_p = _log_softmax(shaped)
                log_q = _log_softmax(shape_logits(theirs[block], teacher.transform, options.temperature)[0])
                if logprobs is not None and targets is not None:
                    index, inside = places(targets[here], slice(0, entries))
                    logprobs[here] = torch.where(inside, log_p.gather(1, index[:, None])[:, 0], torch.nan)
                if entropies is not None:
                    entropies[here] = -(log_p.exp() * log_p).sum(1)
                per_token[here], grad = _divergence(log_p, log_q, options.beta, gradients is not None)
                if grad is not None:
                    grad.mul_(factor[here, None])
                    ours[block] = grad if slope is None else grad.mul_(slope)
            if gradients is not None:
                gradients.add(student, rows, ours, part_size)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(*[x for x in (per_token, logprobs, entropies) if x is not None])
        return (per_token * weights).sum(), per_token, logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this divergence have been handed out; compute it again")
        return *gradients.hand_out(grad_loss), None, None, None


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, 1).clamp_(min=_LOG_ZERO)


def _divergence(log_p: Tensor, log_q: Tensor, beta: float, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """(n,) divergences of the student's log-probabilities (n, V) from the teacher's, and where asked for their
    gradients with respect to the student's logits (n, V)."""
    if beta == 0.0:
        q = log_q.exp()
        forward_kl = (log_q - log_p).mul_(q).sum(1)
        return forward_kl, log_p.exp().sub_(q) if gradient else None
    p = log_p.exp()
    if beta == 1.0:
        log_ratio = log_p - log_q
        value = kl = (log_ratio * p).sum(1)
    else:
        q = log_q.exp()
        log_m = torch.lerp(p, q, beta).clamp_(min=torch.finfo(p.dtype).tiny).log_()
        log_ratio = log_p - log_m
        kl = (log_ratio * p).sum(1)
        value = beta * (log_q - log_m).mul_(q).sum(1) + (1 - beta) * kl
    if not gradient:
        return value, None
    # the mixture's own gradient cancels out: d/dz = share * p * (log p/m - KL(p || m)), with q for m in the reverse KL
    share = 1.0 if beta == 1.0 else 1 - beta
    return value, log_ratio.sub_(kl[:, None]).mul_(p).mul_(share)
