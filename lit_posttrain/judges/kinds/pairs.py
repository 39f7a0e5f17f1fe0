"""From preferences between two responses, in both orders, to scores and ranks of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

Disagreement = Literal["soft", "tie"]
Wins = Sequence[Sequence[float]]
"""(k, k) the probability that the response shown in the one place is better than that in the other."""


def wins_of_first(probability: float) -> Wins:
    """`Wins` of two responses. probability: that the first one shown is better."""
    return [[0.5, probability], [1 - probability, 0.5]]


def wins_of_ranks(ranks: Sequence[int]) -> Wins:
    """`Wins` by ranks: 1 above, 0 below, 1/2 in a tie."""
    return [[(1 + (other > one) - (other < one)) / 2 for other in ranks] for one in ranks]


def of_both_orders(p: float, q: float, disagreement: Disagreement) -> float:
    """The mean of the probabilities in the two orders. With "tie" it is 1/2 where they prefer different responses, or
    only one of them prefers any."""
    if disagreement == "tie" and _side(p) != _side(q):
        return 0.5
    return (p + q) / 2


def shares(pairs: Mapping[tuple[int, int], float], count: int) -> list[float]:
    """(K,) the share of the other responses that each is preferred to. pairs: for each two responses i < j the
    probability that i is better."""
    totals = [0.0] * count
    for (i, j), probability in pairs.items():
        totals[i] += probability
        totals[j] += 1 - probability
    return [total / (count - 1) for total in totals]


def ranks_of(scores: Sequence[float | None]) -> list[int | None]:
    """(K,) ranks by scores, highest first: 0, 1, ... without gaps; equal ones are ties, None has none."""
    close = [None if score is None else round(score, 9) for score in scores]  # sums in another order are not a win
    levels = sorted({score for score in close if score is not None}, reverse=True)
    return [None if score is None else levels.index(score) for score in close]


def _side(probability: float) -> int:
    return (probability > 0.5) - (probability < 0.5)
