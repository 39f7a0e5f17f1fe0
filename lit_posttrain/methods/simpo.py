"""Simple preference optimisation: length-averaged log-probs as rewards, without a reference (Meng et al. 2024)."""

from __future__ import annotations

import math

import torch
from lightning.pytorch.cli import OptimizerCallable

from lit_posttrain.core.preference import PreferenceModule
from lit_posttrain.core.schedules import Schedule
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
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        beta: float = 2.0,
        gamma: float = 1.0,
    ) -> None:
        """
        Args:
            policy: The model to train.
            optimizer: Any torch optimizer, such as torch.optim.AdamW with its learning rate.
            schedule: How the learning rate falls after warm-up, per optimizer step.
            warmup: Share of all optimizer steps over which the learning rate rises from zero.
            beta: Scale of the rewards.
            gamma: Margin by which the chosen response should win, in units of the reward.
        """
        super().__init__(policy, optimizer, schedule, warmup)
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
