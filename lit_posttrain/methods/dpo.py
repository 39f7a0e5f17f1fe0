"""Direct preference optimisation and its variants: the policy's own log-ratios as rewards (Rafailov et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_posttrain.core.preference import PreferenceModule
from lit_posttrain.core.reference import Reference, ReferencedModule
from lit_posttrain.core.schedules import Schedule
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops import preferences as losses
from lit_posttrain.types import Pairs, TreeBatch

Loss = Literal["sigmoid", "conservative", "robust", "hinge", "ipo", "apo_zero", "apo_down", "plackett_luce"]


class DPO(ReferencedModule, PreferenceModule):
    """Direct preference optimisation on pairs or rankings, without a reward model.

    With D = sum_t log pi(y_t) - log pi_ref(y_t) of a response and h = beta * (D_chosen - D_rejected), the loss is the
    mean over the step's pairs of a function of h (`loss`; for plackett_luce over its prompts).
    Metrics: loss, rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies, logps/chosen, logps/rejected,
    kl/batch (mean k3 a token on the given responses, a distance and no KL of samples).
    """

    def __init__(
        self,
        policy: ModelSpec,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        beta: float = 0.1,
        loss: Loss = "sigmoid",
        label_smoothing: float = 0.0,
        length_alpha: float | None = None,
        nll: float = 0.0,
        nll_per: Literal["response", "token"] = "response",
        reference: Reference = "auto",
    ) -> None:
        """
        Args:
            policy: The model to train.
            optimizer: Any torch optimizer, such as torch.optim.AdamW with its learning rate.
            schedule: How the learning rate falls after warm-up, per optimizer step.
            warmup: Share of all optimizer steps over which the learning rate rises from zero.
            beta: How closely the policy is held to the reference; larger is closer.
            loss: The function of a pair's rewards; plackett_luce ranks all responses to a prompt at once.
            label_smoothing: Share of labels taken to be wrong, for conservative and robust; at least 0 and below 0.5.
            length_alpha: Weight of the tokens of a response beyond the length of the other one of its pair, 0 to 1.
            nll: Weight of a term that keeps the chosen responses likely.
            nll_per: Whether that term is a mean over responses (RPO) or over tokens (TRL's sft).
            reference: Where the reference's log-probs come from: adapter_off, copy, cached (on disk, by one pass before
                training), or auto: adapter_off where there are adapters, else copy.
        """
        super().__init__(policy, optimizer, schedule, warmup, reference)
        if not 0 < beta < math.inf:
            raise PostTrainError(f"--model.beta is {beta}; it must be above 0 (0.1 is usual)")
        if not 0 <= label_smoothing < 0.5:
            raise PostTrainError(f"--model.label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5")
        if (loss in ("conservative", "robust")) != (label_smoothing > 0):
            raise PostTrainError(
                f"--model.label_smoothing {label_smoothing:g} with --model.loss {loss}: conservative and robust need "
                "it (0.1, say), and no other loss uses it"
            )
        if length_alpha is not None and (loss == "plackett_luce" or not 0 <= length_alpha <= 1):
            raise PostTrainError("--model.length_alpha is a weight from 0 to 1 for the losses on pairs; leave it out")
        if not 0 <= nll < math.inf:
            raise PostTrainError(f"--model.nll is {nll}; it must be 0 (off) or more")
        self.beta, self.loss, self.label_smoothing, self.length_alpha = beta, loss, label_smoothing, length_alpha
        self.nll, self.nll_per = nll, nll_per

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The preference term, and the NLL term where asked for."""
        reference = self.reference_logprobs(batch)  # first: its memory is free again before the policy's graph is built
        out = self.token_logprobs(batch)
        ratios, counts, pairs = out.logprobs - reference, batch.lengths.clamp(min=1), batch.pairs
        self.track_distance(ratios, batch)
        weights = self._length_weights(batch, counts, pairs)
        ratio = batch.sum(ratios if weights is None else ratios * weights)
        self.track_rewards(self.beta * ratio, pairs, batch.sum(out.logprobs))
        terms = {"preference": self._preference(batch, ratio, counts, pairs)}
        if self.nll:
            terms["nll"] = self.nll_term(batch, out.logprobs, batch.mean(out.logprobs), self.nll, self.nll_per)
        return terms

    def check_store(self, store: Any) -> None:
        """As the base class has it; a ranking is certain.

        Raises:
            PostTrainError: for soft labels with plackett_luce.
        """
        super().check_store(store)
        if self.loss == "plackett_luce" and store.says("flip_prob"):
            raise PostTrainError(
                "--model.loss plackett_luce takes labels as certain, and annotators of this data disagree; pass "
                "--data.annotators majority, or a loss on pairs"
            )

    def _preference(self, batch: TreeBatch, ratio_M: Tensor, counts_M: Tensor, pairs: Pairs) -> Term:
        if self.loss == "plackett_luce":
            reward, rank = self.beta * ratio_M, batch.ranks
            return Term(losses.plackett_luce(reward, rank, batch.response_tree, batch.num_trees).sum(), "trees")
        value = ratio_M / counts_M if self.loss == "ipo" else self.beta * ratio_M
        return Term(pairs.expected_loss(self._pair_loss(), value).sum(), "pairs")

    def _pair_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        smoothing = self.label_smoothing
        return {
            "sigmoid": lambda w, r: losses.logistic(w - r),
            "conservative": lambda w, r: losses.logistic(w - r, smoothing),
            "robust": lambda w, r: losses.robust(w - r, smoothing),
            "hinge": lambda w, r: losses.hinge(w - r),
            "ipo": lambda w, r: losses.ipo(w, r, self.beta),
            "apo_zero": losses.apo_zero,
            "apo_down": losses.apo_down,
        }[self.loss]

    def _length_weights(self, batch: TreeBatch, counts_M: Tensor, pairs: Pairs) -> Tensor | None:
        if self.length_alpha is None:
            return None
        if len(pairs.chosen) * 2 != batch.num_responses:
            raise PostTrainError(
                "--model.length_alpha compares two responses to a prompt, and a prompt here has another number"
            )
        shared = counts_M.clone()
        shorter = torch.minimum(counts_M[pairs.chosen], counts_M[pairs.rejected])
        shared[pairs.chosen], shared[pairs.rejected] = shorter, shorter
        return losses.shared_length_weights(batch.target_response, shared.long(), self.length_alpha)
