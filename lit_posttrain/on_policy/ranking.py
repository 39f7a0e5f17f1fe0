"""Comparisons of sampled responses by their rewards, for losses on pairs and rankings."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lit_posttrain.on_policy.rollouts import Rollout

Comparison = Literal["best_worst", "all"]


def ranked(rollout: Rollout, how: Comparison) -> Rollout | None:
    """The responses that are compared, with their ranks as labels (0 is the best, equal scores share one): the best
    and the worst, or all. None if they are all alike. What has no score, or is not trained on, is left out."""
    trained = np.array([response.loss_mask.any() for response in rollout.tree.responses])
    scores = np.where(trained, rollout.total, np.nan)
    places = np.flatnonzero(~np.isnan(scores))
    places = places[np.argsort(-scores[places], kind="stable")]
    if len(places) < 2 or scores[places[0]] == scores[places[-1]]:
        return None
    found = rollout.only(places[[0, -1]].tolist() if how == "best_worst" else places.tolist())
    ranks = np.unique(-found.total, return_inverse=True)[1]
    for response, rank in zip(found.tree.responses, ranks.tolist(), strict=True):
        response.labels["rank"] = float(rank)
    return found
