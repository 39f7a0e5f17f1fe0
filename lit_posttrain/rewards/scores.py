"""What a reward returns, as a tensor of scores and the problems of single responses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError

Problems = dict[int, BaseException]  # by index of the response

_SHOWN = 40  # characters of a value
_WANTED = "let it return a list with one number, or None, per completion"


def listed(returned: Any, name: str) -> Tensor | Sequence[Any]:
    """What a reward has returned, if it is one value after another; a generator is run. name: of the reward.

    Raises:
        PostTrainError: for anything else, such as a single number or a dict.
    """
    if isinstance(returned, Tensor):
        return returned
    ordered = isinstance(returned, Iterable) and not isinstance(returned, (str, bytes, Mapping, AbstractSet))
    if not ordered or getattr(returned, "ndim", 1) == 0:  # an array of NumPy with one number
        raise PostTrainError(f"reward {name} returned {_shown(returned)}; {_WANTED}")
    return list(returned)


def read_scores(values: Tensor | Sequence[Any], count: int, name: str) -> tuple[Tensor, Problems]:
    """(count,) float64 scores, NaN for none, and the problems of responses whose value is no finite number. values: as
    from `listed`.

    Raises:
        PostTrainError: for another number of them.
    """
    shape = tuple(values.shape) if isinstance(values, Tensor) else (len(values),)
    if shape != (count,):
        found = "x".join(map(str, shape)) or "one number"
        raise PostTrainError(f"reward {name} gave {found} scores for {count} responses; {_WANTED}")
    read = [_score(one) for one in (values.tolist() if isinstance(values, Tensor) else values)]
    problems: Problems = {place: one for place, one in enumerate(read) if isinstance(one, Exception)}
    scores = [one if isinstance(one, float) else math.nan for one in read]
    return torch.tensor(scores, dtype=torch.float64), problems


def _score(value: Any) -> float | Exception | None:
    if value is None or isinstance(value, Exception):
        return value
    try:
        number = None if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        return TypeError(f"it gave {_shown(value)}, which is no number; None means no score")
    return (
        number if math.isfinite(number) else ValueError(f"it gave {number}, which is not finite; None means no score")
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."
