"""How far a judge's probabilities are the shares of people who agree with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lit_posttrain.feedback.agreement.bias import mean
from lit_posttrain.feedback.agreement.intervals import Bootstrap, Estimate
from lit_posttrain.feedback.agreement.votes import Votes
from lit_posttrain.ops.calibration import expected_calibration_error, reliability_sums


@dataclass(frozen=True)
class Calibration:
    """error: expected calibration error. brier: mean squared distance of the judge's probability from the share of
    people's votes. bins: (pairs, mean confidence, how often people agree) by confidence."""

    error: float
    brier: Estimate
    bins: list[tuple[int, float, float]]


def calibration_of(votes: Votes, annotator: int, bootstrap: Bootstrap) -> Calibration | None:
    """Of a judge, on the pairs that people judged too. None without such pairs, and for one that gives no probabilities
    but certain verdicts and ties."""
    said, people = votes.share[annotator], votes.consensus(votes.people[votes.people != annotator])
    both = ~np.isnan(said) & ~np.isnan(people)
    if not both.any() or np.isin(said[both], (0, 0.5, 1)).all():
        return None
    p = torch.from_numpy(said[both])
    sums = reliability_sums(torch.log(p) - torch.log1p(-p), torch.from_numpy(1 - people[both]))
    count, confidence, agreement = (one.tolist() for one in sums)
    there = [b for b, n in enumerate(count) if n]
    bins = [(int(count[b]), confidence[b] / count[b], agreement[b] / count[b]) for b in there]
    total = sum(n for n, _, _ in bins)
    error = expected_calibration_error([n / total for n, _, _ in bins], *list(zip(*bins, strict=True))[1:])
    return Calibration(error, mean((said - people) ** 2, both, bootstrap), bins)
