"""Direct preference optimisation and its variants: the policy's own log-ratios as rewards (Rafailov et al. 2023)."""

from __future__ import annotations

import math
from typing import Literal

from lit_posttrain.core.dpo import DPOLoss, check_dpo, dpo_term, summed_ratios
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.preference import PreferenceModule, nll_term
from lit_posttrain.core.reference import Reference, ReferenceKind
from lit_posttrain.core.terms import Term
from lit_posttrain.data.store.loader import Trees
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.types import TreeBatch


class DPO(PreferenceModule):
    """Direct preference optimisation on pairs or rankings, without a reward model.

    With D = sum_t log pi(y_t) - log pi_ref(y_t) of a response and h = beta * (D_chosen - D_rejected), the loss is the
    mean over the step's pairs of a function of h (`loss`; for plackett_luce over its prompts).
    Metrics: loss, rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies, logps/chosen, logps/rejected,
    kl/batch (mean k3 a token on the given responses, a distance and no KL of samples).
    """

    def __init__(
        self,
        policy: ModelSpec,
        optim: Optim = Optim(lr=1e-6, warmup_ratio=0.1),
        beta: float = 0.1,
        loss: DPOLoss = "sigmoid",
        label_smoothing: float = 0.0,
        ld_alpha: float | None = None,
        rpo_alpha: float = 0.0,
        sft_weight: float = 0.0,
        reference: ReferenceKind = "auto",
    ) -> None:
        """
        Args:
            policy: The model to train.
            optim: The optimizer and the schedule of its learning rate.
            beta: How closely the policy is held to the reference; larger is closer.
            loss: The function of a pair's rewards; plackett_luce ranks all responses to a prompt at once.
            label_smoothing: Share of labels taken to be wrong, for conservative and robust; at least 0 and below 0.5.
            ld_alpha: Weight of the tokens of a response beyond the length of the other one of its pair, 0 to 1.
            rpo_alpha: Weight of a term that keeps the chosen responses likely: the negative log-likelihood per token,
                its mean over responses (RPO).
            sft_weight: The same as a mean over tokens (TRL's sft).
            reference: Where the reference's log-probs come from: adapter_off, copy, cached (on disk, by one pass before
                training), or auto: adapter_off where there are adapters, else copy.
        """
        super().__init__(policy, optim)
        self.reference = Reference(self, reference)
        check_dpo(loss, beta, label_smoothing)
        if ld_alpha is not None and (loss == "plackett_luce" or not 0 <= ld_alpha <= 1):
            raise PostTrainError("--model.ld_alpha is a weight from 0 to 1 for the losses on pairs; leave it out")
        if not (0 <= rpo_alpha < math.inf and 0 <= sft_weight < math.inf) or (rpo_alpha and sft_weight):
            raise PostTrainError(
                f"--model.rpo_alpha is {rpo_alpha} and --model.sft_weight {sft_weight}; they must be 0 (off) or more, "
                "and one of them 0"
            )
        self.beta, self.loss, self.label_smoothing, self.ld_alpha = beta, loss, label_smoothing, ld_alpha
        self.rpo_alpha, self.sft_weight = rpo_alpha, sft_weight

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The preference term, and the NLL term where asked for."""
        reference = self.reference.logprobs(batch)  # first: its memory is free again before the policy's graph is built
        logprobs = self.token_logprobs(batch).logprobs
        ratios, pairs = logprobs - reference, batch.pairs
        self.reference.track_distance(ratios, batch)
        ratio = summed_ratios(batch, ratios, pairs, self.ld_alpha)
        self.track_rewards(self.beta * ratio, pairs, batch.sum(logprobs))
        terms = {"preference": dpo_term(batch, ratio, pairs, self.loss, self.beta, self.label_smoothing)}
        if weight := self.rpo_alpha or self.sft_weight:
            per: Literal["response", "token"] = "response" if self.rpo_alpha else "token"
            terms["nll"] = nll_term(batch, logprobs, batch.mean(logprobs), weight, per)
        return terms

    def check_store(self, store: Trees) -> None:
        """Refuse rows without a comparison, and soft labels for plackett_luce, which takes rankings as certain.

        Raises:
            PostTrainError: for soft labels with plackett_luce.
        """
        super().check_store(store)
        if self.loss == "plackett_luce" and store.says("flip_prob"):
            raise PostTrainError(
                "--model.loss plackett_luce takes labels as certain, and annotators of this data disagree; pass "
                "--data.annotators majority, or a loss on pairs"
            )
