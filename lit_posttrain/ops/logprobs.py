"""Log-probabilities of given tokens without a logits matrix.

Only hidden states that predict a trained token meet the LM head, a tile of rows and vocabulary at a time, with a
running softmax over the tiles (Milakov and Gimelshein 2018); the backward computes each tile again. The largest
temporary is one tile of float32 logits and its part of the head, whatever the number of tokens and the size of the
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.ops.head import (
    HeadTransform,
    accumulate,
    check_targets,
    head_parts,
    matmul_dtype,
    places,
    project,
    shape_logits,
    slices,
)

# Rows and vocabulary entries of a tile. On CPU at most 16 MiB of float32 logits, which the processor's cache holds
# between the passes over them (docs/decisions.md); on GPUs 128 MiB: few launches, and small beside any model.
_CPU_TILE = (2048, 2048)
_GPU_TILE = (4096, 8192)


@dataclass
class TokenLogprobs:
    """Per target: logprobs (N,) float32; entropy (N,) float32 of the whole distribution, and correct (N,) bool
    (the target is the most likely token) where they were asked for. values: of a policy with value heads, by name (N,)
    float32: what the state is worth from which the target is drawn."""

    logprobs: Tensor
    entropy: Tensor | None = None
    correct: Tensor | None = None
    values: dict[str, Tensor] | None = None


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
    tile: tuple[int, int] | None = None,
) -> TokenLogprobs:
    """Log-softmax of `head(hidden @ weight.T + bias) / temperature` at `target_ids`; differentiable in hidden, weight
    and bias, through `entropy` too. Under autocast the matmuls run in its dtype; everything after them is float32
    (float64 for float64 inputs). tile: rows and vocabulary entries computed at a time; the default suits the device.

    Raises:
        ValueError: if the temperature is not positive.
        IndexError: on CPU, if a target is not in the vocabulary. On GPUs, where looking would cost a synchronisation,
            its log-probability is NaN.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    check_targets(target_ids_N, len(weight_VD))
    tile = tile or (_CPU_TILE if hidden_ND.device.type == "cpu" else _GPU_TILE)
    logprobs, entropies, hits = _TiledLogprobs.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        hidden_ND, weight_VD, bias_V, target_ids_N, head or HeadTransform(), temperature, entropy, correct, tile
    )
    return TokenLogprobs(logprobs, entropies if entropy else None, hits if correct else None)


@dataclass
class _Softmax:
    """A softmax over logits that arrive in parts. largest (N,) so far; total (N,): sum of exp(logit - largest);
    weighted (N,): sum of exp(logit - largest) * (logit - largest); best (N,): index of the largest."""

    largest: Tensor
    total: Tensor
    weighted: Tensor | None
    best: Tensor | None

    def add(self, logits: Tensor, rows: slice, first: int) -> None:
        """Take in the logits (n, W) of `rows` for the vocabulary from `first` on; overwrites them."""
        before = self.largest[rows]
        if self.best is not None:
            value, index = logits.max(1)
            self.best[rows] = torch.where(value > before, index + first, self.best[rows])
        else:
            value = logits.amax(1)
        largest = torch.maximum(before, value)
        shrink = (before - largest).exp_()
        logits.sub_(largest[:, None])
        if self.weighted is not None:
            exponentials = logits.clamp_(min=torch.finfo(logits.dtype).min).exp()  # 0 * -inf would be NaN
            added = logits.mul_(exponentials).sum(1)
            moved = self.weighted[rows] + (before - largest) * self.total[rows]
            self.weighted[rows] = moved.mul_(shrink).add_(added)
        else:
            exponentials = logits.exp_()
        self.total[rows] = self.total[rows].mul_(shrink).add_(exponentials.sum(1))
        self.largest[rows] = largest


class _TiledLogprobs(torch.autograd.Function):
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
        tile: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dtype = matmul_dtype(hidden)
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        at_target = torch.full(hidden.shape[:1], torch.nan, dtype=precise, device=hidden.device)
        softmax = _Softmax(
            torch.full_like(at_target, torch.finfo(precise).min),
            torch.zeros_like(at_target),
            torch.zeros_like(at_target) if want_entropy else None,
            torch.zeros_like(targets) if want_correct else None,
        )
        cast = hidden.to(dtype)
        for entries, part, bias_part in head_parts(weight, bias, dtype, tile[1]):
            for rows in slices(hidden.shape[0], tile[0]):
                logits, _ = shape_logits(project(cast[rows], part, bias_part).to(precise), head, temperature)
                place, inside = places(targets[rows], entries)
                at_target[rows] = torch.where(inside, logits.gather(1, place[:, None])[:, 0], at_target[rows])
                softmax.add(logits, rows, entries.start)
        log_total = softmax.total.log()
        normaliser = softmax.largest + log_total
        entropies = None if softmax.weighted is None else log_total - softmax.weighted / softmax.total
        hits = None if softmax.best is None else softmax.best == targets
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, *([entropies] if want_entropy else []))
        ctx.settings = (head, temperature, tile, dtype, precise)
        ctx.set_materialize_grads(False)  # a missing gradient of the entropy saves half of the elementwise work
        if hits is not None:
            ctx.mark_non_differentiable(hits)
        return at_target - normaliser, entropies, hits

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _hits: Any) -> Any:
        hidden, weight, bias, targets, normaliser, *rest = ctx.saved_tensors
        entropies = rest[0] if rest else None
        head, temperature, tile, dtype, precise = ctx.settings
        given = torch.zeros_like(normaliser) if grad_logprobs is None else grad_logprobs.to(precise)
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        cast = hidden.to(dtype)
        # products have the type of the matmuls; their sums over tiles are kept in full precision and rounded once
        grad_hidden = torch.zeros_like(hidden, dtype=precise) if want_hidden else None
        grad_weight = torch.empty_like(weight) if want_weight else None
        grad_bias = torch.empty_like(bias) if want_bias else None
        for entries, part, bias_part in head_parts(weight, bias, dtype, tile[1]):
            weight_sum = torch.zeros_like(part, dtype=precise) if want_weight else None
            bias_sum = torch.zeros(len(part), dtype=precise, device=part.device) if want_bias else None
            for rows in slices(hidden.shape[0], tile[0]):
                raw = project(cast[rows], part, bias_part).to(precise)
                logits, slope = shape_logits(raw, head, temperature)
                shifted = logits.sub_(normaliser[rows, None])
                upstream = given[rows, None]
                if entropies is not None and grad_entropy is not None:
                    probabilities = shifted.clamp_(min=torch.finfo(precise).min).exp()
                    # dH/dz = -p * (log p + H)
                    coefficient = shifted.add_(entropies[rows, None]).mul_(-grad_entropy[rows, None].to(precise))
                    grad = probabilities.mul_(coefficient.sub_(upstream))
                else:
                    grad = shifted.exp_().mul_(-upstream)
                place, inside = places(targets[rows], entries)
                grad.scatter_add_(1, place[:, None], torch.where(inside[:, None], upstream, 0.0))
                if slope is not None:
                    grad.mul_(slope)
                if head.logit_scale != temperature:
                    grad.mul_(head.logit_scale / temperature)
                if bias_sum is not None:
                    bias_sum += grad.sum(0)
                grad_cast = grad.to(dtype)
                if grad_hidden is not None:
                    accumulate(grad_hidden[rows], grad_cast, part)
                if weight_sum is not None:
                    accumulate(weight_sum, grad_cast.t(), cast[rows])
            if grad_weight is not None and weight_sum is not None:
                grad_weight[entries] = weight_sum
            if grad_bias is not None and bias_sum is not None:
                grad_bias[entries] = bias_sum
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias, *[None] * 6
