"""Log-probabilities of given tokens without a logits matrix.

Only hidden states that predict a counted token meet the LM head, in chunks; the backward computes each chunk again.
The largest temporary is one chunk of float32 logits whatever the number of tokens and the size of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# 2^23 float32 logits are 32 MiB: small beside any model, large enough to keep matmuls efficient.
_CHUNK_ELEMENTS = 2**23


@dataclass(frozen=True)
class HeadTransform:
    """What a model does between its LM head and the softmax.

    logit_scale: logits are multiplied by it (Cohere; the reciprocal of Granite's `logits_scaling`).
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2), after the scale.
    """

    logit_scale: float = 1.0
    softcap: float | None = None


@dataclass
class TokenLogprobs:
    """Per target: logprobs (N,) float32; entropy (N,) float32 of the whole distribution, and correct (N,) bool
    (the target is the most likely token) where they were asked for."""

    logprobs: Tensor
    entropy: Tensor | None = None
    correct: Tensor | None = None


def token_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_ids_N: Tensor,
    bias_V: Tensor | None = None,
    *,
    head: HeadTransform | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    correct: bool = False,
    chunk_elements: int = _CHUNK_ELEMENTS,
) -> TokenLogprobs:
    """Log-softmax of `head(hidden @ weight.T + bias) / temperature` at `target_ids`; differentiable in hidden, weight
    and bias, through `entropy` too. Under autocast the matmuls run in its dtype; everything after them is float32
    (float64 for float64 inputs).

    Raises:
        ValueError: if the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    head = head or HeadTransform()
    rows = max(1, chunk_elements // weight_VD.shape[0])
    logprobs, entropies, hits = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        hidden_ND, weight_VD, bias_V, target_ids_N, head, temperature, entropy, correct, rows
    )
    return TokenLogprobs(logprobs, entropies if entropy else None, hits if correct else None)


def _shape_logits(raw: Tensor, head: HeadTransform, temperature: float) -> tuple[Tensor, Tensor | None]:
    """Logits as the softmax sees them, and the derivative of the soft cap if there is one. Works in place on `raw`."""
    if head.logit_scale != 1.0:
        raw.mul_(head.logit_scale)
    slope = None
    if head.softcap is not None:
        raw.div_(head.softcap).tanh_()
        slope = 1 - raw * raw
        raw.mul_(head.softcap)
    if temperature != 1.0:
        raw.div_(temperature)
    return raw, slope


class _ChunkedLogprobs(torch.autograd.Function):
    # Autocast is handled by hand (its dtype is read in forward and kept for backward) so that CPU and GPU behave
    # alike; torch.amp.custom_fwd and custom_bwd each know one device type.
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: HeadTransform,
        temperature: float,
        want_entropy: bool,
        want_correct: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dtype = _matmul_dtype(hidden)
        weight_cast, bias_cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        count = hidden.shape[0]
        logprobs = torch.empty(count, dtype=precise, device=hidden.device)
        normaliser = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if want_entropy else None
        hits = torch.empty(count, dtype=torch.bool, device=hidden.device) if want_correct else None
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            logits, _ = _shape_logits(_project(hidden[part], weight_cast, bias_cast, dtype, precise), head, temperature)
            at_target = logits.gather(1, targets[part, None])[:, 0]
            lse = torch.logsumexp(logits, 1)
            logprobs[part], normaliser[part] = at_target - lse, lse
            if hits is not None:
                hits[part] = logits.argmax(1) == targets[part]
            if entropies is not None:
                probabilities = (logits - lse[:, None]).exp_()
                entropies[part] = lse - (probabilities * logits).sum(1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, *([entropies] if want_entropy else []))
        ctx.settings = (head, temperature, rows, dtype, precise)
        ctx.set_materialize_grads(False)  # a missing gradient of the entropy saves half of the elementwise work
        if hits is not None:
            ctx.mark_non_differentiable(hits)
        return logprobs, entropies, hits

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _hits: Any) -> Any:
        hidden, weight, bias, targets, normaliser, *rest = ctx.saved_tensors
        entropies = rest[0] if rest else None
        head, temperature, rows, dtype, precise = ctx.settings
        given = torch.zeros_like(normaliser) if grad_logprobs is None else grad_logprobs
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        weight_cast, bias_cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if want_weight else None
        grad_bias = torch.zeros(bias.shape, dtype=precise, device=bias.device) if want_bias else None
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, min(start + rows, hidden.shape[0]))
            raw = _project(hidden[part], weight_cast, bias_cast, dtype, precise)
            logits, slope = _shape_logits(raw, head, temperature)
            shifted = logits.sub_(normaliser[part, None])
            upstream = given[part, None].to(precise)
            if entropies is not None and grad_entropy is not None:
                probabilities = shifted.exp()
                # dH/dz = -p * (log p + H)
                coefficient = (shifted + entropies[part, None]).mul_(-grad_entropy[part, None].to(precise)) - upstream
                grad = probabilities.mul_(coefficient)
            else:
                grad = shifted.exp_().mul_(-upstream)
            grad.scatter_add_(1, targets[part, None], upstream)
            if slope is not None:
                grad.mul_(slope)
            if head.logit_scale != temperature:
                grad.mul_(head.logit_scale / temperature)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad_cast = grad.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = _matmul(grad_cast, weight_cast)
            if grad_weight is not None:
                _accumulate(grad_weight, grad_cast, hidden[part].to(dtype))
        # summed over chunks in full precision, rounded once
        total_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, total_weight, None if grad_bias is None else grad_bias.to(bias.dtype), *[None] * 6


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _project(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, precise: torch.dtype) -> Tensor:
    """Fresh logits in `precise`: the caller works on them in place."""
    logits = _matmul(hidden.to(dtype), weight.t())
    if bias is not None:
        logits += bias
    return logits.to(precise)


def _accumulate(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """total += grad.T @ hidden, in `total`'s own precision."""
    with torch.autocast(hidden.device.type, enabled=False):
        if total.dtype == grad.dtype:
            total.addmm_(grad.t(), hidden)
        else:
            total += grad.t() @ hidden
