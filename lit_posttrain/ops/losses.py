"""Losses as pure functions of tensors: the equation, its source, nothing else."""

from __future__ import annotations

from torch import Tensor


def negative_log_likelihood(logprobs_N: Tensor) -> Tensor:
    """sum_t -log pi(y_t | x, y_<t): the *sum* over targets. The caller divides by the step's number of tokens."""
    return -logprobs_N.sum()
