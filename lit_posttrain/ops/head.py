"""From hidden states to logits, a part of the rows and of the vocabulary at a time: what the tiled operators share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadTransform:
    """What a model does between its LM head and the softmax.

    logit_scale: logits are multiplied by it (Cohere; the reciprocal of Granite's `logits_scaling`).
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2), after the scale.
    """

    logit_scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Whole logits as the softmax sees them, in any shape; differentiable."""
        scaled = logits if self.logit_scale == 1.0 else self.logit_scale * logits
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


def slices(size: int, most: int) -> list[slice]:
    """Consecutive slices of about equal size, at most `most`, over `size` entries."""
    count = -(-size // most)
    ends = [size * (i + 1) // count for i in range(count)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def head_parts(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, entries: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """The head a few vocabulary entries at a time, in the type of the matmuls."""
    for part in slices(weight.shape[0], entries):
        yield part, weight[part].to(dtype), None if bias is None else bias[part].to(dtype)


def shape_logits(raw: Tensor, head: HeadTransform, temperature: float) -> tuple[Tensor, Tensor | None]:
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


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The type that autocast computes products in, or that of `hidden` where it is off."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, precise: torch.dtype) -> Tensor:
    """Fresh logits in `precise`: the caller works on them in place."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden @ weight.t()
    if bias is not None:
        logits += bias
    return logits.to(precise)


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; the sum has `total`'s precision, the product that of its factors."""
    with torch.autocast(left.device.type, enabled=False):
        if total.dtype == left.dtype:
            total.addmm_(left, right)
        else:
            total += left @ right
