"""The terms of a loss: sums over a micro-batch, each divided by its denominator over the whole optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.data.store.units import UNITS
from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import place_of


@dataclass
class Term:
    """One term of a loss: a sum over the micro-batch and the unit it is divided by.

    total: scalar, the sum over this micro-batch's tokens, responses, pairs or trees.
    unit: which of `TreeBatch.denominators` is its denominator over the whole optimizer step, a name in `UNITS`.
    weight: coefficient of the term in the loss.

    Raises:
        PostTrainError: for a unit that is not in the table, and a total that is not a tensor or not a scalar.
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
        found: Any = self.total
        if not isinstance(found, Tensor):
            raise PostTrainError(
                f"a term of the loss has a total of type {type(found).__name__}, and a tensor is wanted, from which "
                "the gradient is computed: pass the sum itself, without .item() or float()"
            )
        if self.total.dim():
            raise PostTrainError(
                f"a term of the loss has the shape {tuple(self.total.shape)}: its total is the sum over the "
                "micro-batch, a scalar; pass total.sum()"
            )


def require_terms(found: Any, method: type) -> dict[str, Term]:
    """Check what the `loss_terms` of a class returned.

    Raises:
        PostTrainError: if it is anything but terms by name.
    """
    if isinstance(found, dict) and found and all(isinstance(term, Term) for term in found.values()):
        return found
    what = "None" if found is None else type(found).__name__
    if isinstance(found, dict):
        what += f" of {', '.join(type(term).__name__ for term in found.values()) or 'nothing'}"
    raise PostTrainError(
        f"{_loss_of_class(method)} returned {what}; let it return the terms of its loss by name, such as "
        '{"nll": Term(-logprobs.sum(), "tokens")}'
    )


def require_gradient(loss: Tensor, method: type) -> Tensor:
    """The loss of a training step.

    Raises:
        PostTrainError: if it has no gradient, which Lightning would report from within its backward pass.
    """
    if loss.requires_grad:
        return loss
    raise PostTrainError(
        f"{_loss_of_class(method)} returned terms without a gradient: compute them from the model's log-probabilities, "
        "not under torch.no_grad and without .detach() or torch.tensor(...)"
    )


def _loss_of_class(method: type) -> str:
    loss: Any = method
    return f"{method.__name__}.loss_terms ({place_of(loss.loss_terms)})"


def loss_of(terms: Mapping[str, Term], denominators: Mapping[str, float]) -> Tensor:
    """Scalar: the sum over terms of weight * total / denominator, with `TreeBatch.denominators`. A denominator of 0
    counts as 1: a step may have nothing to learn from, such as responses that were all cut off; its loss is 0."""
    return torch.stack([t.weight * t.total / max(denominators[t.unit], 1.0) for t in terms.values()]).sum()
