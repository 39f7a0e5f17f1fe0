"""The terms of a loss: sums over a micro-batch, each divided by its denominator over the whole optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        PostTrainError: for a unit that is not in the table, and a total that is not a scalar.
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
        if self.total.dim():
            raise PostTrainError(
                f"a term of the loss has the shape {tuple(self.total.shape)}: its total is the sum over the "
                "micro-batch, a scalar; pass total.sum()"
            )


def require_terms(found: Any, method: str) -> dict[str, Term]:
    """Check what the `loss_terms` of a method returned.

    Raises:
        PostTrainError: if it is anything but terms by name.
    """
    if isinstance(found, dict) and found and all(isinstance(term, Term) for term in found.values()):
        return found
    what = type(found).__name__
    if isinstance(found, dict):
        what += f" of {', '.join(type(term).__name__ for term in found.values()) or 'nothing'}"
    raise PostTrainError(
        f"{method}.loss_terms returned {what}; let it return the terms of its loss by name, such as "
        '{"nll": Term(-logprobs.sum(), "tokens")}'
    )


def loss_of(terms: Mapping[str, Term], denominators: Mapping[str, float]) -> Tensor:
    """Scalar: the sum over terms of weight * total / denominator, with `TreeBatch.denominators`. A denominator of 0
    counts as 1: a step may have nothing to learn from, such as responses that were all cut off; its loss is 0."""
    return torch.stack([t.weight * t.total / max(denominators[t.unit], 1.0) for t in terms.values()]).sum()
