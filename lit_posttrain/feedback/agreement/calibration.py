"""How far a judge's probabilities are the shares of people who agree with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lit_posttrain.feedback.agreement.bias import mean
from lit_posttrain.feedback.agreement.intervals import Bootstrap, Estimate
from lit_posttrain.feedback.agreement.votes import Votes
from lit_posttrain.ops.calibration import expected_calibration_error, reliability_sums

_DRAWS = 200


@dataclass(frozen=True)
class Calibration:
    """error: expected calibration error. by_chance: what it exceeds in 5 % of cases for a judge with these
    probabilities whom people agree with as often as it says: few pairs in a bin never agree exactly so often. brier:
    mean squared distance of the judge's probability from the share of people's votes. bins: (pairs, mean confidence,
    how often people agree) by confidence."""

    error: float
    by_chance: float
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
    margin = torch.log(p) - torch.log1p(-p)
    bins = _bins(margin, torch.from_numpy(people[both]))
    drawn = np.random.default_rng(0).random((_DRAWS, len(p))) < said[both]
    by_chance = np.quantile([_error(_bins(margin, torch.from_numpy(one.astype(float)))) for one in drawn], 0.95)
    return Calibration(_error(bins), float(by_chance), mean((said - people) ** 2, both, bootstrap), bins)


def _bins(margin_P: torch.Tensor, people_P: torch.Tensor) -> list[tuple[int, float, float]]:
    count, confidence, agreement = (one.tolist() for one in reliability_sums(margin_P, 1 - people_P))
    there = [b for b, n in enumerate(count) if n]
    return [(int(count[b]), confidence[b] / count[b], agreement[b] / count[b]) for b in there]


def _error(bins: list[tuple[int, float, float]]) -> float:
    total = sum(n for n, _, _ in bins)
    return expected_calibration_error([n / total for n, _, _ in bins], *list(zip(*bins, strict=True))[1:])
