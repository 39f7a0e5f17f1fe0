"""Odds-ratio preference optimisation: likelihood and preference in one loss, without a reference (Hong et al. 2024)."""

from __future__ import annotations

import math
from typing import Literal

from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.preference import PreferenceModule, nll_term
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
        optim: Optim = Optim(lr=8e-6, warmup_ratio=0.1),
        beta: float = 0.1,
        nll_per: Literal["response", "token"] = "response",
    ) -> None:
        """
        Args:
            policy: The model to train.
            optim: The optimizer and the schedule of its learning rate.
            beta: Lambda, the weight of the preference beside the likelihood.
            nll_per: What the likelihood is averaged over: response (the paper) or token, which is TRL's with
                --data.train_on_prompt true.
        """
        super().__init__(policy, optim)
        if not 0 < beta < math.inf:
            raise PostTrainError(f"--model.beta is {beta}; it must be above 0 (0.1 is usual)")
        self.beta, self.nll_per = beta, nll_per

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The likelihood of the chosen responses, and the preference."""
        logprobs, pairs = self.token_logprobs(batch).logprobs, batch.pairs
        mean = batch.mean(logprobs)
        self.track_rewards(self.beta * mean, pairs, batch.sum(logprobs))
        return {
            "nll": nll_term(batch, logprobs, mean, 1.0, self.nll_per),
            "preference": Term(pairs.expected_loss(odds_ratio, mean).sum(), "pairs", self.beta),
        }
