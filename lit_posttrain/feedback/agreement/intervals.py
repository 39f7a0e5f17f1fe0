"""Bootstrap intervals over prompts: all pairs of a prompt are drawn together, as their votes depend on each other.

Every statistic of this package is a function of sums over prompts, so that a thousand resamples are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_posttrain.feedback.agreement.votes import Bools, Floats, Ints

FEW = 30  # prompts, below which nothing is concluded or fitted
_MOST_DRAWN = 50_000_000  # bytes of drawn prompts in memory


@dataclass(frozen=True)
class Estimate:
    """A statistic, its 95 % interval, and the number of votes or pairs that it is of, and of their prompts, on which
    the interval rests. NaN for what nothing says."""

    value: float
    low: float
    high: float
    n: int
    prompts: int

    def __bool__(self) -> bool:
        return self.n > 0 and not math.isnan(self.value)

    def told(self) -> dict[str, Any]:
        """As JSON has it, null for NaN."""
        given = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(one) else round(one, 6) for name, one in given.items()} | {"n": self.n}


NOTHING = Estimate(math.nan, math.nan, math.nan, 0, 0)


class Bootstrap:
    """Percentile intervals of 95 % from resampled prompts, the same ones for every statistic."""

    def __init__(self, prompts: Ints, resamples: int = 1000, seed: int = 0) -> None:
        """
        Args:
            prompts: (P,) number of each pair's prompt.
            resamples: Number of resamples; fewer, and at least 100, for more than 50,000 prompts.
            seed: The same seed gives the same intervals.
        """
        self._prompts = prompts
        self._count = int(prompts.max()) + 1 if len(prompts) else 0
        resamples = min(resamples, max(_MOST_DRAWN // max(self._count, 1), 100))
        rng = np.random.default_rng(seed)
        self._weights = np.zeros((resamples, self._count), np.uint8)  # how often each prompt is drawn
        for row in self._weights:
            row[:] = np.bincount(rng.integers(0, self._count, self._count), minlength=self._count)

    def estimate(self, parts: Floats, statistic: Callable[[Floats], Floats], n: int) -> Estimate:
        """A statistic of the sums of all pairs. parts: (P, ...) of each pair. statistic: from sums (..., *parts) to
        (...). n: number of votes or pairs in the sums."""
        if n == 0:
            return NOTHING
        flat = parts.reshape(len(parts), -1)
        by_prompt = np.zeros((self._count, flat.shape[1]))
        np.add.at(by_prompt, self._prompts, flat)
        there = (by_prompt != 0).any(1)  # two of many annotators have few prompts in common
        by_prompt, weights = by_prompt[there], self._weights[:, there]
        drawn = np.concatenate([rows.astype(float) @ by_prompt for rows in np.array_split(weights, 20)])
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(statistic(by_prompt.sum(0).reshape(parts.shape[1:])))
            found = statistic(drawn.reshape(-1, *parts.shape[1:]))
        found = found[np.isfinite(found)]
        if math.isnan(value) or not len(found):
            return Estimate(value, math.nan, math.nan, n, len(by_prompt))
        low, high = np.quantile(found, [0.025, 0.975])
        return Estimate(value, float(low), float(high), n, len(by_prompt))

    def folds(self, count: int) -> Ints:
        """(P,) a fold for each pair, all pairs of a prompt in the same one; prompts are dealt out at random."""
        dealt = np.random.default_rng(count).permutation(self._count) % count
        return np.asarray(dealt[self._prompts], np.int64)

    def count(self, where: Bools) -> int:
        """The number of prompts that some pairs (P,) have."""
        return len(np.unique(self._prompts[where]))

    def weighted(self, statistic: Callable[[Floats], Floats], where: Bools) -> list[Estimate]:
        """Numbers that are no function of sums. statistic: from the weights of pairs (P,), which say how often each was
        drawn, to some numbers. where: (P,) the pairs that they are of."""
        n, prompts = int(where.sum()), self.count(where)
        value = statistic(np.ones(len(self._prompts)))
        drawn = [statistic(row.astype(float)[self._prompts]) for row in self._weights]
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        return [Estimate(float(v), float(a), float(b), n, prompts) for v, a, b in zip(value, low, high, strict=True)]
