"""From hidden states to logits, a part of the rows and of the vocabulary at a time: what the tiled operators share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadTransform:
    """The steps of a model between its LM head and the softmax.

    logit_scale: logits are multiplied by it (Cohere; the reciprocal of Granite's `logits_scaling`).
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2), after the scale.
    """

    logit_scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Whole logits as the softmax sees them, in any shape; differentiable."""
        scaled = logits if self.logit_scale == 1.0 else self.logit_scale * logits
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


@dataclass(frozen=True)
class HeadInputs:
    """Hidden states and the LM head that makes logits of them: `transform(hidden @ weight.T + bias)`.

    hidden: (N, D). weight: (V, D). bias: (V,) or None. For a head that is more than a linear layer (LoRA on it, say)
    weight is None and `hidden` holds whole logits (N, V), transform included.
    """

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    transform: HeadTransform = field(default_factory=HeadTransform)

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def entries(self) -> int:
        """Size of the vocabulary."""
        return self.hidden.shape[1] if self.weight is None else len(self.weight)

    def cast(self, entries: int) -> HeadInputs:
        """The first `entries` of the vocabulary alone; hidden states in the type of the matmuls."""
        if self.weight is None:
            return replace(self, hidden=self.hidden[:, :entries])
        hidden, bias = self.hidden.to(matmul_dtype(self.hidden)), self.bias
        return HeadInputs(hidden, self.weight[:entries], None if bias is None else bias[:entries], self.transform)

    def write_logits(self, rows: slice, out: Tensor, part_size: int) -> None:
        """Write the logits of `rows` (n, V), before the transform, `part_size` vocabulary entries at a time. For what
        `cast` returns."""
        if self.weight is None:
            out.copy_(self.hidden[rows])
            return
        for entries, part, bias in head_parts(self.weight, self.bias, self.hidden.dtype, part_size):
            out[:, entries] = project(self.hidden[rows], part, bias)


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


def check_targets(target_ids: Tensor, entries: int) -> None:
    """Raise IndexError, on CPU, if a target is not in the vocabulary; on GPUs looking would cost a synchronisation."""
    if target_ids.device.type == "cpu" and bool(((target_ids < 0) | (target_ids >= entries)).any()):
        raise IndexError(f"a target id is outside the vocabulary of {entries} entries")


def places(targets: Tensor, entries: slice) -> tuple[Tensor, Tensor]:
    """Index of each target within a part of the vocabulary, 0 for targets outside of it, and a mask of those inside."""
    place = targets - entries.start
    inside = (place >= 0) & (place < entries.stop - entries.start)
    return place * inside, inside


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


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Fresh logits in the type of the factors: the caller works on them in place."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden @ weight.t()
    if bias is not None:
        logits += bias
    return logits


def accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; the sum has `total`'s precision, the product that of its factors."""
    with torch.autocast(left.device.type, enabled=False):
        if total.dtype == left.dtype:
            total.addmm_(left, right)
        else:
            total += left @ right
