"""What the methods on comparisons share: the pairs of a batch, the reference policy, metrics of implicit rewards."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.methods.base import PostTrainingModule, Term
from lit_posttrain.methods.schedules import Schedule
from lit_posttrain.models.policy import Backbone
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops.preferences import preferred_pairs, response_sums
from lit_posttrain.types import Role, TreeBatch

log = logging.getLogger(__name__)

Reference = Literal["auto", "adapter_off", "copy"]


@dataclass
class Pairs:
    """P pairs of responses to the same prompt.

    chosen, rejected (P,): which responses of the batch, the preferred one and the other. flipped (P,): the probability
    that the other one is the better one after all. margin (P,): by how much the preferred one is better, 0 where nobody
    said.
    """

    chosen: Tensor
    rejected: Tensor
    flipped: Tensor
    margin: Tensor

    def mixed(self, loss: Callable[[Tensor, Tensor], Tensor], values_M: Tensor) -> Tensor:
        """(P,) loss(preferred, other) of the responses' values. A soft label is a mixture of both orders; with certain
        labels the second one weighs nothing."""
        first, second = values_M[self.chosen], values_M[self.rejected]
        return (1 - self.flipped) * loss(first, second) + self.flipped * loss(second, first)


def pairs_of(batch: TreeBatch) -> Pairs:
    """All pairs of unequal rank of a batch."""
    first, second = preferred_pairs(batch.ranks, batch.response_tree)
    role, label = batch.response_role, batch.response_label
    flipped = torch.where(role[second] == Role.REJECTED, label[second], 0.0)
    margin = torch.where(role[first] == Role.CHOSEN, label[first], 0.0)
    return Pairs(first, second, flipped, margin)


def token_counts(batch: TreeBatch) -> Tensor:
    """(M,) float: counted tokens of each response, at least 1."""
    ones = torch.ones_like(batch.target_response, dtype=torch.float32)
    return response_sums(ones, batch.target_response, batch.num_responses).clamp(min=1)


class PreferenceModule(PostTrainingModule):
    """Base class of the methods that learn from pairs: sums per response, metrics, and an NLL term."""

    def track_rewards(self, rewards_M: Tensor, pairs: Pairs, logprobs_M: Tensor | None = None) -> None:
        """Metrics of the pairs: rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies (strictly greater
        counts, so it is 0 where all margins are), and logps/chosen and logps/rejected (nats a response)."""
        rewards = rewards_M.detach()
        chosen, rejected = rewards[pairs.chosen], rewards[pairs.rejected]
        found = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
        }
        if logprobs_M is not None:
            logprobs = logprobs_M.detach()
            found |= {"logps/chosen": logprobs[pairs.chosen], "logps/rejected": logprobs[pairs.rejected]}
        for name, values in found.items():
            self.track(name, values.sum(), float(len(chosen)))

    def nll_term(self, batch: TreeBatch, logprobs_N: Tensor, means_M: Tensor, weight: float, per: str) -> Term:
        """weight * negative log-likelihood of the best responses (rank 0).

        `response` (RPO, ORPO): the mean over prompts of the mean per token; a soft label p shares it, 1 - p and p,
        between the two responses. `token` (TRL's `sft` and its ORPO): the mean over all their tokens and those of
        prompts that the data counts.
        """
        best, tree = batch.ranks == 0, batch.response_tree
        if per == "token":
            chosen = (batch.target_response < 0) | best[batch.target_response]
            return Term(-logprobs_N[chosen].sum(), "chosen_tokens", weight)
        flipped = torch.where(batch.response_role == Role.REJECTED, batch.response_label, 0.0).to(means_M.dtype)
        zeros = means_M.new_zeros(batch.num_trees)
        flips, ties = zeros.index_add(0, tree, flipped), zeros.index_add(0, tree, best.to(zeros.dtype))
        share = torch.where(best, (1 - flips[tree]) / ties[tree].clamp(min=1), flipped)
        return Term(-(share * means_M).sum(), "trees", weight)

    def on_fit_start(self) -> None:
        """Refuse data that the method cannot learn from, before the first step."""
        data: Any = getattr(self.trainer, "datamodule", None)
        for store in [getattr(data, "train_store", None), *getattr(data, "val_stores", {}).values()]:
            if store is not None:
                self.check_store(store)

    def check_store(self, store: Any) -> None:
        """Refuse data without comparisons: a mean over no pairs is no number.

        Raises:
            PostTrainError: naming the first row that compares nothing.
        """
        lone = (store.num_pairs == 0).nonzero()[0].tolist()
        if lone:
            raise PostTrainError(
                f"{store.sources(lone[:1])[0]}: no two responses to compare, and {type(self).__name__} learns from "
                "comparisons; give chosen and rejected, or ranked responses"
            )


class ReferencedModule(PreferenceModule):
    """Base class of the methods that compare the policy with what it was at the start of training."""

    def __init__(
        self,
        policy: ModelSpec,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        warmup: float,
        reference: Reference,
    ) -> None:
        """
        Args:
            policy: The model to train.
            optimizer: Any torch optimizer, such as torch.optim.AdamW with its learning rate.
            schedule: How the learning rate falls after warm-up, per optimizer step.
            warmup: Share of all optimizer steps over which the learning rate rises from zero.
            reference: Where the reference's log-probs come from: the policy with its adapter off, a frozen copy, or
                auto: adapter_off where there is an adapter, else a copy.
        """
        super().__init__(policy, optimizer, schedule, warmup)
        adapter = policy.lora is not None
        if policy.random_init:
            raise PostTrainError(
                "--model.policy.random_init: a reference must be the same after a resume; start from a saved model"
            )
        if reference == "adapter_off" and not adapter:
            raise PostTrainError("--model.reference adapter_off: there is no adapter; add --model.policy.lora.r 16")
        self.reference = ("adapter_off" if adapter else "copy") if reference == "auto" else reference
        self._frozen: list[Backbone] = []  # in a list, so that it is no submodule: neither trained nor saved

    def configure_model(self) -> None:
        """Build the policy, and the reference before anything is restored into it.

        Raises:
            PostTrainError: if the tokenizer brings tokens that the model lacks: their embeddings are drawn each time.
        """
        known = self.model_config.get_text_config(decoder=True).vocab_size
        if self.reference == "copy" and len(self.tokenizer) > known:
            raise PostTrainError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model {known}: a reference with embeddings "
                "drawn anew would differ after a resume; fine-tune the new tokens first (SFT), start from that model"
            )
        fresh = self.policy is None
        super().configure_model()
        if not fresh or self.reference != "copy":
            return
        assert self.policy is not None
        # sharded parameters cannot be copied as they are; built from the same spec they are the same
        frozen = copy.deepcopy(self.policy) if self.device_mesh is None else self.build_policy()
        self._frozen = [frozen.requires_grad_(False).eval()]

    def reference_logprobs(self, batch: TreeBatch) -> Tensor:
        """(N,) log-probs of the batch's targets under the reference, without a graph."""
        assert self.policy is not None
        model: Any = self.policy.model
        if self.reference == "copy":
            # in the policy's type: under bf16-true Lightning casts only what it knows of
            frozen = self._frozen[0].to(self.device)
            if frozen.transformer.dtype != self.policy.transformer.dtype:
                frozen.to(self.policy.transformer.dtype)
            with torch.no_grad():
                copied: Tensor = frozen(batch).logprobs
            return copied
        with self.still_policy() as policy, model.disable_adapter():
            bare: Tensor = policy(batch).logprobs
        return bare

    @contextmanager
    def still_policy(self) -> Iterator[Backbone]:
        """The policy without a graph and without dropout: what is measured with is no game of chance."""
        assert self.policy is not None
        training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad():
                yield self.policy
        finally:
            self.policy.train(training)
