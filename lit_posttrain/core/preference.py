"""Shared by the methods on comparisons: metrics of rewards, and a likelihood term; and the check of the others that
refuses comparisons."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_posttrain.core.directions import Direction
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.terms import Term
from lit_posttrain.data.modules.built import BuiltData
from lit_posttrain.data.modules.preference import PreferenceData
from lit_posttrain.data.store.loader import Trees
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Pairs, RewardedResponses, TreeBatch

log = logging.getLogger(__name__)


class PreferenceModule(PostTrainingModule):
    """Base class of the methods that learn from preferences: metrics and rewards of responses.

    uses_margins: True if the loss uses `Pairs.margin`. Data with margins gives a warning otherwise.
    """

    uses_margins: ClassVar[bool] = False
    better: ClassVar[Mapping[str, Direction]] = {"rewards/accuracies": "max", "rewards/margins": "max"}
    _rewards: Tensor | None = None  # of the evaluated batch, until `rewarded` takes them

    def track_rewards(self, rewards_M: Tensor, pairs: Pairs, logprobs_M: Tensor | None = None) -> None:
        """Metrics of the pairs, see `track_pairs`; of an evaluated batch the rewards are kept for callbacks."""
        self.keep_rewards(rewards_M)
        track_pairs(self, rewards_M, pairs, logprobs_M)

    def keep_rewards(self, rewards_M: Tensor) -> None:
        """Keep the rewards of an evaluated batch for `rewarded`; while training nothing is kept."""
        if self.evaluating:
            self._rewards = rewards_M.detach()

    def rewarded(self, batch: TreeBatch) -> RewardedResponses:
        """The responses of the batch that was evaluated last, with their rewards."""
        assert self._rewards is not None, "loss_terms keeps the rewards of what it evaluates"
        rewards, self._rewards = self._rewards.float(), None
        tree, pairs = batch.response_tree, batch.pairs
        rows = torch.tensor(batch.example_ids, dtype=torch.int64, device=tree.device)
        return RewardedResponses(
            rewards=rewards,
            rows=rows[tree],
            places=torch.arange(len(tree), device=tree.device) - torch.searchsorted(tree, tree),
            desirable=batch.desirable,
            first=pairs.chosen,
            second=pairs.rejected,
            flip_prob=pairs.flip_prob,
        )

    def validation_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Add a batch to the metrics of its file. Returns `RewardedResponses` for callbacks, None if `loss_terms` has
        kept no rewards."""
        super().validation_step(batch, batch_idx, dataloader_idx)
        return None if self._rewards is None else self.rewarded(batch)

    def check_data(self, data: LightningDataModule | None) -> None:
        """Check the training and validation rows that are known before the first step; warn of margins that are not
        used."""
        if isinstance(data, BuiltData):
            for store in data.known_stores:
                self.check_store(store)
            if not self.uses_margins and any(store.says("margin") for store in data.known_stores):
                told = "the data has margins, which %s does not use: of the methods here RewardModel alone does"
                log.warning(told, type(self).__name__)

    def check_store(self, store: Trees) -> None:
        """Refuse data without comparisons: a mean over no pairs is no number.

        Raises:
            PostTrainError: naming the first row that compares nothing.
        """
        lone = (store.units["pairs"] == 0).nonzero()[0].tolist()
        if lone:
            raise PostTrainError(
                f"{store.sources(lone[:1])[0]}: no two responses to compare, and {type(self).__name__} learns from "
                "comparisons: chosen and rejected, or ranked responses; configs/kto.yaml learns from single good and "
                "bad ones"
            )


def track_pairs(module: PostTrainingModule, rewards_M: Tensor, pairs: Pairs, logprobs_M: Tensor | None = None) -> None:
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
        module.track(name, values.sum(), float(len(chosen)))


def nll_term(
    batch: TreeBatch, logprobs_N: Tensor, means_M: Tensor, weight: float, per: Literal["response", "token"]
) -> Term:
    """weight * negative log-likelihood of the best responses (rank 0). means_M: of the log-probs of each response.

    `response` (RPO, ORPO): the mean over prompts of the mean per token; a soft label p shares it, 1 - p and p, between
    the two responses. `token` (TRL's `sft` and its ORPO): the mean over all their tokens and those of prompts that the
    data counts.
    """
    best, tree = batch.ranks == 0, batch.response_tree
    if per == "token":
        chosen = (batch.target_response < 0) | best[batch.target_response]
        return Term(-logprobs_N[chosen].sum(), "chosen_tokens", weight)
    flip_prob = batch.per_response.optional("flip_prob").nan_to_num(0.0).to(means_M.dtype)
    zeros = means_M.new_zeros(batch.num_trees)
    flips, ties = zeros.index_add(0, tree, flip_prob), zeros.index_add(0, tree, best.to(zeros.dtype))
    share = torch.where(best, (1 - flips[tree]) / ties[tree].clamp(min=1), flip_prob)
    return Term(-(share * means_M).sum(), "trees", weight)


def refuse_comparisons(module: PostTrainingModule, data: LightningDataModule | None) -> None:
    """For a method that learns from every answer of its data.

    Raises:
        PostTrainError: for data with answers that were rejected.
    """
    if isinstance(data, PreferenceData):
        raise PostTrainError(
            f"--data PreferenceData: {type(module).__name__} learns from every answer, and this data has rejected "
            "ones; learn from the others alone: --data ConversationData --data.columns.completion chosen"
        )
