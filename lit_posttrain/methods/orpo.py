"""Odds-ratio preference optimisation: likelihood and preference in one loss, without a reference (Hong et al. 2024)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable

from lit_posttrain.core.preference import PreferenceModule, nll_term
from lit_posttrain.core.schedules import Schedule
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops.preferences import odds_ratio
from lit_posttrain.types import TreeBatch


class ORPO(PreferenceModule):
    """ORPO on pairs: NLL of the chosen responses plus lambda times the mean of -log sigmoid(log odds_chosen - log
    odds_rejected), the odds those of the mean log-prob per token. Metrics as for `DPO`, with lambda * avg as the
    reward."""

    def __init__(
        self,
        policy: ModelSpec,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=8e-6, weight_decay=0.0),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        odds_weight: float = 0.1,
        nll_per: Literal["response", "token"] = "response",
    ) -> None:
        """
        Args:
            policy: The model to train.
            optimizer: Any torch optimizer, such as torch.optim.AdamW with its learning rate.
            schedule: How the learning rate falls after warm-up, per optimizer step.
            warmup: Share of all optimizer steps over which the learning rate rises from zero.
            odds_weight: Lambda, the weight of the preference beside the likelihood.
            nll_per: Whether the likelihood is a mean over responses (the paper's) or over tokens; with
                --data.train_on_prompt true the latter is TRL's.
        """
        super().__init__(policy, optimizer, schedule, warmup)
        if not 0 < odds_weight < math.inf:
            raise PostTrainError(f"--model.odds_weight is {odds_weight}; it must be above 0 (0.1 is usual)")
        self.odds_weight, self.nll_per = odds_weight, nll_per

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The likelihood of the chosen responses, and the preference."""
        logprobs, pairs = self.token_logprobs(batch).logprobs, batch.pairs
        mean = batch.mean(logprobs)
        self.track_rewards(self.odds_weight * mean, pairs, batch.sum(logprobs))
        return {
            "nll": nll_term(batch, logprobs, mean, 1.0, self.nll_per),
            "preference": Term(pairs.expected_loss(odds_ratio, mean).sum(), "pairs", self.odds_weight),
        }
