"""Sequence-likelihood calibration (Zhao et al. 2023): a hinge on the mean log-probabilities of a pair."""

import torch

from lit_posttrain import Term, TreeBatch
from lit_posttrain.core.preference import PreferenceModule


class SLiC(PreferenceModule):
    """The mean over pairs of relu(gap - (avg_chosen - avg_rejected)), avg the mean log-prob per token."""

    def __init__(self, gap: float = 1.0, **options) -> None:
        """
        Args:
            gap: By how much the chosen response is to be the more likely one.
        """
        super().__init__(**options)
        self.gap = gap

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        mean = batch.mean(self.token_logprobs(batch).logprobs)
        self.track_rewards(mean, batch.pairs)
        loss = batch.pairs.expected_loss(lambda chosen, rejected: torch.relu(self.gap - (chosen - rejected)), mean)
        return {"hinge": Term(loss.sum(), "pairs")}
