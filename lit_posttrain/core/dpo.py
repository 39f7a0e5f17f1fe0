"""The DPO family as functions of log-ratios log pi - log pi_ref, for any method that has ranked responses and a
reference: on given responses (`DPO`) or on the policy's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.ops import preferences as losses
from lit_posttrain.types import Pairs, TreeBatch

DPOLoss = Literal["sigmoid", "conservative", "robust", "hinge", "ipo", "apo_zero", "apo_down", "plackett_luce"]


def check_dpo(loss: DPOLoss, beta: float, label_smoothing: float) -> None:
    """Refuse options that make no loss.

    Raises:
        PostTrainError: naming the option.
    """
    if not 0 < beta < math.inf:
        raise PostTrainError(f"--model.beta is {beta}; it must be above 0 (0.1 is usual)")
    if not 0 <= label_smoothing < 0.5:
        raise PostTrainError(f"--model.label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5")
    if (loss in ("conservative", "robust")) != (label_smoothing > 0):
        raise PostTrainError(
            f"--model.label_smoothing {label_smoothing:g} with --model.loss {loss}: conservative and robust need "
            "it (0.1, say), and no other loss uses it"
        )


def dpo_term(
    batch: TreeBatch, ratio_M: Tensor, pairs: Pairs, loss: DPOLoss, beta: float, label_smoothing: float = 0.0
) -> Term:
    """The preference term: a mean over pairs, for plackett_luce over prompts.

    ratio_M: D = sum_t log pi(y_t) - log pi_ref(y_t) of each response, see `summed_ratios`. pairs: those of `batch`.
    label_smoothing: share of labels taken to be wrong, for conservative and robust. The losses: ops/preferences.py.
    """
    if loss == "plackett_luce":
        each = losses.plackett_luce(beta * ratio_M, batch.ranks, batch.response_tree, batch.num_trees)
        return Term(each.sum(), "trees")
    value = ratio_M / batch.lengths.clamp(min=1) if loss == "ipo" else beta * ratio_M
    of_pair: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "sigmoid": lambda w, r: losses.logistic(w - r),
        "conservative": lambda w, r: losses.logistic(w - r, label_smoothing),
        "robust": lambda w, r: losses.robust(w - r, label_smoothing),
        "hinge": lambda w, r: losses.hinge(w - r),
        "ipo": lambda w, r: losses.ipo(w, r, beta),
        "apo_zero": losses.apo_zero,
        "apo_down": losses.apo_down,
    }
    return Term(pairs.expected_loss(of_pair[loss], value).sum(), "pairs")


def summed_ratios(batch: TreeBatch, ratios_N: Tensor, pairs: Pairs, ld_alpha: float | None = None) -> Tensor:
    """(M,) log-ratios of the responses. ld_alpha: weight of a response's tokens beyond the length of the other one
    of its pair (Liu et al. 2024).

    Raises:
        PostTrainError: for ld_alpha, if a prompt has another number of responses than two.
    """
    if ld_alpha is None:
        return batch.sum(ratios_N)
    if len(pairs.chosen) * 2 != batch.num_responses:
        raise PostTrainError(
            "--model.ld_alpha compares two responses to a prompt, and a prompt here has another number"
        )
    shared = batch.lengths.clamp(min=1)
    shorter = torch.minimum(shared[pairs.chosen], shared[pairs.rejected])
    shared[pairs.chosen], shared[pairs.rejected] = shorter, shorter
    return batch.sum(ratios_N * losses.shared_length_weights(batch.target_response, shared.long(), ld_alpha))
