"""Statistics of the rewards of a data set for `RewardLogger`: distributions, reliability, and pairs worth reading."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_posttrain.ops import calibration
from lit_posttrain.types import RewardedResponses

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MOST_BINS = 60


@dataclass(frozen=True)
class Distribution:
    """Finite values with a histogram. values (n,), counts (bins,), edges (bins + 1,). not_finite: number of values that
    were left out."""

    values: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    edges: np.ndarray[Any, Any]
    not_finite: int

    def as_row(self) -> dict[str, Any] | None:
        """Count, mean, quantiles by probability, and the histogram's range and counts; None without values."""
        left_out = {"not_finite": self.not_finite} if self.not_finite else {}
        if not len(self.values):
            return {"count": 0, **left_out} if left_out else None
        quantiles = np.quantile(self.values, QUANTILES)
        return {
            "count": len(self.values),
            **left_out,
            "mean": short(self.values.mean()),
            "quantiles": {f"{q:g}": short(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
            "histogram": {
                "low": short(self.edges[0]),
                "high": short(self.edges[-1]),
                "counts": self.counts.tolist(),
            },
        }


@dataclass(frozen=True)
class Reliability:
    """Per bin of the confidence s(|h|), see `calibration.reliability_sums`; bins without a pair are left out.

    pairs, confidence, agreement (b,): number of pairs, their mean s(|h|), and the share of annotators who agree. ece:
    the mean distance of confidence and agreement, weighted by pairs.
    """

    pairs: list[int]
    confidence: list[float]
    agreement: list[float]
    ece: float


@dataclass(frozen=True)
class RewardSummary:
    """The rewards of one data set. responses: their number. reliability: None without pairs."""

    name: str
    responses: int
    chosen: Distribution
    rejected: Distribution
    margins: Distribution
    reliability: Reliability | None

    def as_row(self, step: int | None) -> dict[str, Any]:
        """A line of rewards.jsonl."""
        found: dict[str, Any] = {"step": step, "data": self.name, "responses": self.responses}
        trust = self.reliability
        found["pairs"] = len(self.margins.values) + self.margins.not_finite
        found |= {name: getattr(self, name).as_row() for name in ("chosen", "rejected", "margins")}
        if trust is not None:
            found["reliability"] = {
                "pairs": trust.pairs,
                "confidence": [short(value) for value in trust.confidence],
                "agreement": [short(value) for value in trust.agreement],
            }
            found["ece"] = short(trust.ece)
        return found


def summarise(found: RewardedResponses, name: str) -> RewardSummary:
    """The summary of a data set. chosen and rejected are the two sides of all pairs, as in the metrics rewards/chosen
    and rewards/rejected (but not KTO's, which count each response once, by its label), and the good and the bad
    responses to prompts without a pair. Both histograms have the same edges."""
    margin = margins(found)
    paired = torch.isin(found.rows, found.rows[found.first])
    chosen = torch.cat([found.rewards[found.first], found.rewards[~paired & (found.desirable > 0.5)]])
    rejected = torch.cat([found.rewards[found.second], found.rewards[~paired & (found.desirable < 0.5)]])
    edges = _edges(torch.cat([chosen, rejected]))
    return RewardSummary(
        name,
        len(found.rewards),
        _distribution(chosen, edges),
        _distribution(rejected, edges),
        _distribution(margin, _edges(margin)),
        _reliability(margin, found.flip_prob),
    )


def margins(found: RewardedResponses) -> Tensor:
    """(P,) reward of the preferred response minus that of the other."""
    return found.rewards[found.first] - found.rewards[found.second]


def telling_pairs(margin_P: Tensor, show: int) -> list[tuple[str, int]]:
    """(kind, pair), at most `show` of each: `clear` with the largest margins above 0, `wrong` with the lowest below 0,
    `close` with those nearest 0. Equal margins stay in the order of the data."""
    finite = margin_P.isfinite()
    kinds = {
        "clear": (-margin_P, finite & (margin_P > 0)),
        "wrong": (margin_P, finite & (margin_P < 0)),
        "close": (margin_P.abs(), finite),
    }
    picked = []
    for kind, (key, allowed) in kinds.items():
        order = torch.where(allowed, key, torch.inf).argsort(stable=True)
        picked += [(kind, pair) for pair in order[: min(show, int(allowed.sum()))].tolist()]
    return picked


def short(value: float) -> float:
    """Rounded to seven digits, all that a float32 has."""
    return float(f"{value:.7g}")


def _edges(values: Tensor) -> np.ndarray[Any, Any]:
    """Edges of 2 n^(1/3) equal bins over the whole range (Rice's rule)."""
    finite = values[values.isfinite()].numpy().astype(np.float64)
    return np.histogram_bin_edges(finite, min(math.ceil(2 * max(len(finite), 1) ** (1 / 3)), MOST_BINS))


def _distribution(values: Tensor, edges: np.ndarray[Any, Any]) -> Distribution:
    finite = values[values.isfinite()].numpy().astype(np.float64)
    return Distribution(finite, np.histogram(finite, edges)[0], edges, len(values) - len(finite))


def _reliability(margin_P: Tensor, flip_prob_P: Tensor) -> Reliability | None:
    finite = margin_P.isfinite()
    if not finite.any():
        return None
    count, confidence, agreement = calibration.reliability_sums(margin_P[finite], flip_prob_P[finite])
    full = count > 0
    pairs = count[full]
    trust, truth = (confidence[full] / pairs).tolist(), (agreement[full] / pairs).tolist()
    ece = calibration.expected_calibration_error((pairs / pairs.sum()).tolist(), trust, truth)
    return Reliability(pairs.long().tolist(), trust, truth, ece)
