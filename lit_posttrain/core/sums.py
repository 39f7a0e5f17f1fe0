"""Tell a term of a loss that is a mean from one that is a sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lit_posttrain.core.metric_log import MetricLog
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.terms import require_terms
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Tree

_TOLERANCE = 0.02  # a mean is off by half; bfloat16 by less than this
_ROUNDING = 1e-4  # advantages sum to 0, and leave what rounds


def require_sums(module: PostTrainingModule, trees: Sequence[Tree]) -> None:
    """Refuse a loss that a cut into micro-batches would change: each of its terms must be the same on all of the trees
    as on their two halves together. It needs no Trainer: for notebooks and tests. A loss that compares the rows of a
    step with each other, as KTO's does, is no such sum.

    trees: at least two rows, such as those of a data module's `train_store`, or the trees of rollouts.

    Raises:
        PostTrainError: naming the term; for fewer than two trees, and for terms that are 0 on all of them, which tell
            nothing.
    """
    if len(trees) < 2:
        raise PostTrainError(f"require_sums compares halves and got {len(trees)} trees; pass at least two")
    half = len(trees) // 2
    whole, first, second = (_totals(module, some) for some in (trees, trees[:half], trees[half:]))
    name = f"{type(module).__name__}.loss_terms"
    if all(abs(total) < _ROUNDING for total in whole.values()):
        raise PostTrainError(f"{name}: every term is 0 on these {len(trees)} rows, which tells nothing; pass others")
    for term, total in whole.items():
        parts = first[term], second[term]
        allowed = max(_TOLERANCE * max(map(abs, (total, *parts))), _ROUNDING)
        if abs(total - sum(parts)) > allowed:
            raise PostTrainError(
                f"{name}: the term `{term}` is {total:.4g} of {len(trees)} rows, and {parts[0]:.4g} and {parts[1]:.4g} "
                "of their halves: it must be the sum over the micro-batch; take no mean"
            )


def _totals(module: PostTrainingModule, trees: Sequence[Tree]) -> dict[str, float]:
    """The terms on a batch of the trees, as if nothing had been tracked."""
    kept, module.metrics = module.metrics, MetricLog().to(module.device)
    try:
        with torch.no_grad():
            terms = require_terms(module.loss_terms(module.batch_of(trees)), type(module))
    finally:
        module.metrics = kept
    return {name: float(term.total) for name, term in terms.items()}
