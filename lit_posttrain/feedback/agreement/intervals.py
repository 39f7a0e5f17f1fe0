"""Bootstrap intervals over prompts: all pairs of a prompt are drawn together, as their votes depend on each other.

Every statistic of this package is a function of sums over prompts, so that a thousand resamples are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_posttrain.feedback.agreement.votes import Floats, Ints

_AT_ONCE = 4_000_000  # numbers of drawn prompts in memory


@dataclass(frozen=True)
class Estimate:
    """A statistic, its 95 % interval, and the number of votes or pairs that it is of. NaN for what nothing says."""

    value: float
    low: float
    high: float
    n: int

    def __bool__(self) -> bool:
        return self.n > 0 and not math.isnan(self.value)

    def told(self) -> dict[str, Any]:
        """As JSON has it, null for NaN."""
        given = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(one) else round(one, 6) for name, one in given.items()} | {"n": self.n}


class Bootstrap:
    """Percentile intervals of 95 % from resampled prompts, the same ones for every statistic."""

    def __init__(self, prompts: Ints, resamples: int = 1000, seed: int = 0) -> None:
        """
        Args:
            prompts: (P,) number of each pair's prompt.
            resamples: Number of resamples.
            seed: The same seed gives the same intervals.
        """
        self._prompts, self._resamples, self._seed = prompts, resamples, seed
        self._count = int(prompts.max()) + 1 if len(prompts) else 0

    def estimate(self, sums: Floats, statistic: Callable[[Floats], Floats], n: int) -> Estimate:
        """A statistic of the sums of all pairs. sums: (P, ...) the parts of each pair. statistic: from (..., *parts) to
        (...). n: number of votes or pairs in the sums."""
        flat = sums.reshape(len(sums), -1)
        by_prompt = np.zeros((self._count, flat.shape[1]))
        np.add.at(by_prompt, self._prompts, flat)
        by_prompt = by_prompt[np.abs(by_prompt).sum(1) > 0]
        if n == 0 or not len(by_prompt):
            return Estimate(math.nan, math.nan, math.nan, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(statistic(by_prompt.sum(0).reshape(sums.shape[1:])))
            drawn = statistic(self._drawn(by_prompt).reshape(-1, *sums.shape[1:]))
        drawn = drawn[np.isfinite(drawn)]
        if math.isnan(value) or not len(drawn):
            return Estimate(value, math.nan, math.nan, n)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Estimate(value, float(low), float(high), n)

    def _drawn(self, by_prompt: Floats) -> Floats:
        """(resamples, parts) sums over prompts that are drawn with replacement."""
        count, rng = len(by_prompt), np.random.default_rng(self._seed)
        step = max(_AT_ONCE // max(count, 1), 1)
        parts = []
        for begin in range(0, self._resamples, step):
            size = min(step, self._resamples - begin)
            parts.append(rng.multinomial(count, np.full(count, 1 / count), size) @ by_prompt)
        return np.concatenate(parts)
