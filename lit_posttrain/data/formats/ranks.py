"""Ranks of the responses to a prompt, from people or reward models: checked, and counted from 0."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow, Misread, NothingToLearn
from lit_posttrain.data.rows.votes import whole_number

_RANKS_ARE = (
    "ranks count from 0 or 1, equal ones are ties, and the lowest is the best (of scores the highest: name those with "
    "--data.columns.scores)"
)


def ranks_of_scores(values: object, column: str) -> Any:
    """Ranks from 0 for scores, of which the highest is the best."""
    if not isinstance(values, list):
        return values
    try:
        scores = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        scores = [math.nan]
    if not all(map(math.isfinite, scores)):
        raise BadRow("scores", f"`{column}` is {values}; every response needs a score, which is a number")
    return [sorted(set(scores), reverse=True).index(score) for score in scores]


def ranks_of(values: object, count: int) -> list[float]:
    """Ranks from 0. Ties share a rank; the next rank follows directly, or after as many places as there are ties.

    Raises:
        BadRow: not one whole number per response, all equal, or gaps that no counting of ties explains.
        Misread: a number that cannot be a rank, such as a score.
    """
    if not isinstance(values, list) or len(values) != count:
        raise BadRow(
            "ranks", f"{len(values) if isinstance(values, list) else 'no'} ranks for {count} responses; mend them"
        )
    ranks = [whole for value in values if (whole := whole_number(value)) is not None]
    if len(ranks) < count:
        numbers = all(isinstance(value, (int, float)) for value in values)
        raise (Misread if numbers else BadRow)("ranks", f"the ranks {values} are not whole numbers; {_RANKS_ARE}")
    order = sorted(set(ranks))
    if len(order) == 1:
        raise NothingToLearn("all tied", "every response has the same rank: no preference; remove the row")
    dense = all(b - a == 1 for a, b in pairwise(order))
    standard = all(sum(v < rank for v in ranks) == rank - order[0] for rank in order)
    if order[0] < 0 or order[-1] > count:
        raise Misread(
            "ranks",
            f"the ranks {values} of {count} responses have gaps; {_RANKS_ARE}",
        )
    if order[0] not in (0, 1) or not (dense or standard):
        raise BadRow("ranks", f"the ranks {values} have gaps; {_RANKS_ARE}")
    return [float(order.index(v)) for v in ranks]
