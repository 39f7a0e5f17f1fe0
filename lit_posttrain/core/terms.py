"""The terms of a loss: sums over a micro-batch, each divided by its denominator over the whole optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_posttrain.data.store.units import UNITS
from lit_posttrain.errors import PostTrainError


@dataclass
class Term:
    """One term of a loss: a sum over the micro-batch and the unit it is divided by.

    total: scalar, the sum over this micro-batch's tokens, responses, pairs or trees.
    unit: which of `TreeBatch.denominators` is its denominator over the whole optimizer step, a name in `UNITS`.
    weight: coefficient of the term in the loss.

    Raises:
        PostTrainError: for a unit that is not in the table.
    """

    total: Tensor
    unit: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise PostTrainError(
                f"a term of the loss is divided by `{self.unit}`, which is none of {', '.join(UNITS)}: add a function "
                "that counts it to UNITS of lit_posttrain.data.store.units"
            )


def loss_of(terms: Mapping[str, Term], denominators: Mapping[str, float]) -> Tensor:
    """Scalar: the sum over terms of weight * total / denominator, with `TreeBatch.denominators`. A denominator of 0
    counts as 1: a step may have nothing to learn from, such as responses that were all cut off; its loss is 0."""
    return torch.stack([t.weight * t.total / max(denominators[t.unit], 1.0) for t in terms.values()]).sum()
