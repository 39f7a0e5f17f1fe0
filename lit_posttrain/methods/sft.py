"""Supervised fine-tuning: maximise the likelihood of the trained tokens of given responses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from lightning.pytorch import LightningDataModule

from lit_posttrain.core.directions import Direction
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.preference import refuse_comparisons
from lit_posttrain.core.terms import Term
from lit_posttrain.ops.losses import negative_log_likelihood
from lit_posttrain.types import TreeBatch


class SFT(PostTrainingModule):
    """Supervised fine-tuning on conversations, instructions or plain text.

    loss = sum over the step's trained tokens of -log pi(token) / number of trained tokens of the step.
    Metrics: loss, entropy (mean per token, nats), mean_token_accuracy, perplexity (exp of the loss), num_tokens.
    """

    better: ClassVar[Mapping[str, Direction]] = {"mean_token_accuracy": "max", "perplexity": "min"}
    dropout: ClassVar[bool] = True

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The negative log-likelihood per token."""
        out = self.token_logprobs(batch, entropy=True, correct=True)
        assert out.entropy is not None
        assert out.correct is not None
        count = batch.local_count("tokens")
        self.track("entropy", out.entropy.sum(), count)
        self.track("mean_token_accuracy", out.correct.sum(), count)
        return {"nll": Term(negative_log_likelihood(out.logprobs), "tokens")}

    def check_data(self, data: LightningDataModule | None) -> None:
        """Refuse comparisons.

        Raises:
            PostTrainError: saying how to learn from their chosen answers.
        """
        refuse_comparisons(self, data)

    def derived_metrics(self, values: Mapping[str, float]) -> dict[str, float]:
        """Perplexity is a function of the reduced loss, not a mean of perplexities."""
        nll = values.get("loss/nll", values.get("loss"))  # beside other terms, or alone
        return {} if nll is None else {"perplexity": math.exp(min(nll, 700.0))}
