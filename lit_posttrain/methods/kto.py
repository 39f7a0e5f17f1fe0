"""Kahneman-Tversky optimisation: good and bad responses that need no counterpart (Ethayarajh et al. 2024).

Where TRL measures the baseline z_0 on every micro-batch, here it is measured once over the whole optimizer step, before
its first backward pass, so that cutting a step into micro-batches or ranks changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.preference import PreferenceModule
from lit_posttrain.core.reference import Reference, ReferenceKind
from lit_posttrain.core.terms import Term
from lit_posttrain.data.modules.built import BuiltData
from lit_posttrain.data.modules.streamable import StreamableData
from lit_posttrain.data.store.kl_pairs import KLPairs, prompts_differ
from lit_posttrain.data.store.loader import AuxiliaryRows, Trees
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops.precision import sum_dtype
from lit_posttrain.ops.preferences import kto
from lit_posttrain.types import TreeBatch

KL_PAIRS = "kl_pairs"


class KTO(PreferenceModule):
    """KTO on responses that are good or bad; of pairs the sides, of rankings the best and the worst response.

    With D = sum_t log pi(y_t) - log pi_ref(y_t) and z_0 the mean D of responses to other prompts, at least 0: the mean
    over labelled responses of weight * (1 - s(beta (D - z_0))) for good ones, weight * (1 - s(beta (z_0 - D))) for bad
    ones. A soft label mixes both.
    Metrics: loss, rewards/chosen (of good responses), rewards/rejected, rewards/margins (of the means), kl (z_0 before
    it is cut off at 0, nats a response), kl/batch (mean k3 a token on the given responses), logps/chosen and
    logps/rejected. Validation takes z_0 of each batch, a stream that of each step; where all prompts are the same, 0.
    """

    learns_from_singles: ClassVar[bool] = True

    def __init__(
        self,
        policy: ModelSpec,
        optim: Optim = Optim(lr=1e-6, warmup_ratio=0.1),
        reference: ReferenceKind = "auto",
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
    ) -> None:
        """
        Args:
            policy: The model to train.
            optim: The optimizer and the schedule of its learning rate.
            reference: Where the reference's log-probs come from, as for DPO.
            beta: Scale of the implicit rewards; a larger one holds the policy closer to the reference.
            desirable_weight: Weight of good responses. With few of them raise it, so that weight times number is alike
                on both sides.
            undesirable_weight: Weight of bad responses.
        """
        super().__init__(policy, optim)
        self.reference = Reference(self, reference)
        if not 0 < beta < math.inf:
            raise PostTrainError(f"--model.beta is {beta}; it must be above 0 (0.1 is usual)")
        if not (0 <= desirable_weight < math.inf and 0 <= undesirable_weight < math.inf) or not (
            desirable_weight or undesirable_weight
        ):
            raise PostTrainError(
                f"--model.desirable_weight is {desirable_weight} and --model.undesirable_weight {undesirable_weight}; "
                "they must be at least 0, and one of them above (1 is usual)"
            )
        self.beta, self.desirable_weight, self.undesirable_weight = beta, desirable_weight, undesirable_weight
        self._moved = torch.zeros(())  # mean D of responses to other prompts, of the training step under way

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The term over labelled responses."""
        if KL_PAIRS in batch.extras:
            moved = self._mean_ratio(batch.extras[KL_PAIRS])
        else:  # a validation may come in the middle of a step
            moved = torch.zeros_like(self._moved) if self.evaluating else self._moved
        if not self.evaluating:
            self._moved = moved
        reference = self.reference.logprobs(batch)
        logprobs = self.token_logprobs(batch).logprobs
        self.reference.track_distance(logprobs - reference, batch)
        ratio, good = batch.sum(logprobs - reference), batch.desirable
        self.keep_rewards(self.beta * ratio)
        labelled = ~good.isnan()
        reward, good, logprob = self.beta * ratio[labelled], good[labelled], batch.sum(logprobs)[labelled]
        for name, value in (("rewards", reward.detach()), ("logps", logprob.detach())):
            self.track(f"{name}/chosen", (good * value).sum(), good.sum())
            self.track(f"{name}/rejected", ((1 - good) * value).sum(), (1 - good).sum())
        baseline = self.beta * moved.clamp(min=0)
        losses = kto(reward, good, baseline, self.desirable_weight, self.undesirable_weight)
        return {"preference": Term(losses.sum(), "labelled")}

    def derived_metrics(self, values: Mapping[str, float]) -> dict[str, float]:
        """The margin of the means: no pair has one."""
        names = ("rewards/chosen", "rewards/rejected")
        return {"rewards/margins": values[names[0]] - values[names[1]]} if all(n in values for n in names) else {}

    def auxiliary_rows(self, store: Trees, max_length: int) -> dict[str, AuxiliaryRows]:
        """Every prompt with a response to another one: what z_0 is measured on."""
        return {KL_PAIRS: KLPairs(store, max_length)}

    def check_data(self, data: LightningDataModule | None) -> None:
        """Check the training and validation rows.

        Raises:
            PostTrainError: also if all rows have the same prompt.
        """
        super().check_data(data)
        if isinstance(data, StreamableData) and data.streaming:
            if data.batch_size < 2:
                raise PostTrainError(
                    "--data.batch_size 1 with --data.streaming: KTO compares the rows of a step with each other; take "
                    "2 or more"
                )
        elif isinstance(data, BuiltData) and not prompts_differ(data.train_store):
            raise PostTrainError(
                f"{data.train_store.files[0]}: all rows have the same prompt, and KTO compares with responses to "
                "others; mix some in"
            )

    def check_store(self, store: Trees) -> None:
        """Refuse rows without a label.

        Raises:
            PostTrainError: naming the first one.
        """
        bare = (store.units["labelled"] == 0).nonzero()[0].tolist()
        if bare:
            raise PostTrainError(
                f"{store.sources(bare[:1])[0]}: nobody says whether its response is good; KTO needs a label true or "
                "false, or comparisons"
            )

    def _mean_ratio(self, batches: list[TreeBatch]) -> Tensor:
        """Scalar: mean D of the step's responses to other prompts, over all ranks."""
        sums = torch.zeros(2, device=self.device, dtype=sum_dtype(self.device))
        for batch in batches:
            with self.eval_no_grad() as policy:
                ratio = policy(batch).logprobs - self.reference.logprobs(batch)
            sums += torch.stack([ratio.sum(), ratio.new_tensor(float(batch.num_responses))]).to(sums.dtype)
        self.track("kl", sums[0], sums[1])
        total: Tensor = self.over_ranks(sums)
        return (total[0] / total[1].clamp(min=1)).to(ratio.dtype)
