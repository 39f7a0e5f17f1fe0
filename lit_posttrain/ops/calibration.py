"""How far predicted preferences are those that people have: reliability bins, the Brier score, moments for a
correlation. All of it in sums over pairs or responses, so that micro-batches and ranks add up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_posttrain.ops.precision import sum_dtype

BINS = 10


def reliability_sums(margin_P: Tensor, flipped_P: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Sums for a reliability plot: pairs (bins,), confidence (bins,) and agreement (bins,) by equal bins of the
    confidence s(|h|) in [1/2, 1]. Agreement is the probability that people prefer the response which scores higher:
    1 - flipped where h > 0, flipped where h < 0, one half for equal scores."""
    dtype = sum_dtype(margin_P.device)
    confidence = torch.sigmoid(margin_P.abs().to(dtype))
    agreement = torch.where(margin_P > 0, 1 - flipped_P, torch.where(margin_P < 0, flipped_P, 0.5)).to(dtype)
    place = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)  # of a NaN, which the sums show
    zeros = confidence.new_zeros(bins)
    count = zeros.index_add(0, place, torch.ones_like(confidence))
    return count, zeros.index_add(0, place, confidence), zeros.index_add(0, place, agreement)


def expected_calibration_error(
    share: Sequence[float], confidence: Sequence[float], agreement: Sequence[float]
) -> float:
    """sum_b share_b |agreement_b - confidence_b| over bins (Naeini et al. 2015); share of pairs, means of the bin."""
    return sum(n * abs(a - c) for n, c, a in zip(share, confidence, agreement, strict=True))


def brier(margin_P: Tensor, flipped_P: Tensor) -> Tensor:
    """(P,) squared distance of s(h) from the observed preference 1 - flipped (Brier 1950)."""
    return (torch.sigmoid(margin_P) - (1 - flipped_P)) ** 2


def pearson(x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    """Pearson's correlation of the means of x, y, x^2, y^2 and x*y; None where either does not vary."""
    across, down = xx - x * x, yy - y * y
    if across <= 1e-12 * max(xx, 1e-30) or down <= 1e-12 * max(yy, 1e-30):
        return None
    return float((xy - x * y) / (across * down) ** 0.5)
