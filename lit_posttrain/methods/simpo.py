"""Simple preference optimisation: length-averaged log-probs as rewards, without a reference (Meng et al. 2024)."""

from __future__ import annotations

import math

from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.preference import PreferenceModule
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops.preferences import simpo
from lit_posttrain.types import TreeBatch


class SimPO(PreferenceModule):
    """SimPO on pairs: the mean over pairs of -log sigmoid(beta * (avg_chosen - avg_rejected) - gamma), avg the mean
    log-prob per token. Metrics as for `DPO`, with beta * avg as the reward."""

    def __init__(
        self,
        policy: ModelSpec,
        optim: Optim = Optim(lr=1e-6, warmup_ratio=0.1),
        beta: float = 2.0,
        gamma: float = 1.0,
    ) -> None:
        """
        Args:
            policy: The model to train.
            optim: The optimizer and the schedule of its learning rate.
            beta: Scale of the rewards.
            gamma: Margin by which the chosen response should win, in units of the reward.
        """
        super().__init__(policy, optim)
        if not 0 < beta < math.inf:
            raise PostTrainError(f"--model.beta is {beta}; it must be above 0 (2 is usual)")
        if not 0 <= gamma < math.inf:
            raise PostTrainError(f"--model.gamma is {gamma}; it must be at least 0 (1 is usual)")
        self.beta, self.gamma = beta, gamma

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The preference term."""
        logprobs, pairs = self.token_logprobs(batch).logprobs, batch.pairs
        mean = batch.mean(logprobs)
        self.track_rewards(self.beta * mean, pairs, batch.sum(logprobs))
        loss = pairs.expected_loss(lambda w, r: simpo(w, r, self.beta, self.gamma), mean)
        return {"preference": Term(loss.sum(), "pairs")}
