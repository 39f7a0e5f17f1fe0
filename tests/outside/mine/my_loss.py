"""Sequence-likelihood calibration (Zhao et al. 2023)."""

from typing import Any

from lit_posttrain import PreferenceModule, Term, TreeBatch


class SLiC(PreferenceModule):
    """The mean over pairs of relu(gap - (avg_chosen - avg_rejected)), avg the mean log-prob per token."""

    def __init__(self, gap: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.gap = gap

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        mean = batch.mean(self.token_logprobs(batch).logprobs)  # one number for every response
        self.track_rewards(mean, batch.pairs)
        loss = batch.pairs.expected_loss(lambda chosen, other: (self.gap - (chosen - other)).relu(), mean)
        return {"hinge": Term(loss.sum(), "pairs")}
