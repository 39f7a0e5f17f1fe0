"""The terms of a loss: sums over a micro-batch, each divided by its denominator over the whole optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass
class Term:
    """One term of a loss: a sum over the micro-batch and the unit it is divided by.

    total: scalar, the sum over this micro-batch's tokens, responses, pairs or trees.
    unit: which of `TreeBatch.denominators` is its denominator over the whole optimizer step.
    weight: coefficient of the term in the loss.
    """

    total: Tensor
    unit: Literal["tokens", "chosen_tokens", "responses", "labelled", "pairs", "trees"]
    weight: float = 1.0


def loss_of(terms: Mapping[str, Term], denominators: Mapping[str, float]) -> Tensor:
    """Scalar: the sum over terms of weight * total / denominator, with `TreeBatch.denominators`. A denominator of 0
    counts as 1: a step may have nothing to learn from, such as responses that were all cut off; its loss is 0."""
    return torch.stack([t.weight * t.total / max(denominators[t.unit], 1.0) for t in terms.values()]).sum()
