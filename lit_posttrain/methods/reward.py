"""Reward models: a score for every response, learnt from what people prefer (Christiano et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lit_posttrain.core.directions import Direction
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.predictions import predicted_rows
from lit_posttrain.core.preference import PreferenceModule
from lit_posttrain.core.terms import Term
from lit_posttrain.data.store.loader import Trees
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.model_config import Head
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops import calibration
from lit_posttrain.ops import preferences as losses
from lit_posttrain.ops.precision import sum_dtype
from lit_posttrain.types import Pairs, RowLayout, TreeBatch

SIMILAR_LENGTH = 0.75  # the shorter of two responses has at least this share of the longer one's tokens
_MOMENTS = ("score", "length", "score^2", "length^2", "score*length")


class RewardModel(PreferenceModule):
    """A language model whose head is a score, trained on pairs or rankings.

    Metrics: loss, rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies; of validation and test data
    also calibration (ece, brier) and length bias: length/score_correlation (Pearson, over responses),
    length/similar_accuracies (of pairs within 25 % of each other's length), length/longer_scored_higher beside
    length/longer_preferred (shares of pairs).
    """

    head: ClassVar[Head] = "score"
    uses_margins: ClassVar[bool] = True
    better: ClassVar[Mapping[str, Direction]] = {"brier": "min", "ece": "min", "length/similar_accuracies": "max"}

    def __init__(
        self,
        policy: ModelSpec,
        optim: Optim = Optim(lr=1e-5),
        loss: Literal["bradley_terry", "all_pairs", "plackett_luce"] = "bradley_terry",
        center_rewards_coefficient: float = 0.0,
    ) -> None:
        """
        Args:
            policy: The model to train: a language model, which gets a new score head, or a reward model.
            optim: The optimizer and the schedule of its learning rate.
            loss: bradley_terry is a mean over pairs, all_pairs one over prompts of the mean over a prompt's pairs
                (InstructGPT), plackett_luce ranks all responses to a prompt at once. With two responses all are one.
            center_rewards_coefficient: Weight of (S_chosen + S_rejected)^2, which keeps scores around zero (0.01 is
                usual).
        """
        super().__init__(policy, optim)
        if not 0 <= center_rewards_coefficient < math.inf:
            raise PostTrainError(
                f"--model.center_rewards_coefficient is {center_rewards_coefficient}; it must be at least 0 (0.01 is "
                "usual)"
            )
        self.loss, self.center_rewards_coefficient = loss, center_rewards_coefficient

    @property
    def layout(self) -> RowLayout:
        """How trees may be packed; with all tokens of a response, whose score is read at the last one."""
        return self.layout_for(super().layout)

    @staticmethod
    def layout_for(layout: RowLayout) -> RowLayout:
        """A layout for scores."""
        return replace(layout, tails=True)

    def scores(self, batch: TreeBatch) -> Tensor:
        """(M,) scores of the batch's responses."""
        assert self.policy is not None
        found: Tensor = self.policy(batch)
        return found

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The preference, and the centring where asked for."""
        score, pairs = self.scores(batch), batch.pairs
        self.track_rewards(score, pairs)
        if self.evaluating:
            self._track_quality(score.detach(), batch.lengths, pairs)
        terms = {"preference": self._preference(batch, score, pairs)}
        if self.center_rewards_coefficient:
            both = score[pairs.chosen] + score[pairs.rejected]
            terms["centering"] = Term((both**2).sum(), "pairs", self.center_rewards_coefficient)
        return terms

    def _preference(self, batch: TreeBatch, score_M: Tensor, pairs: Pairs) -> Term:
        if self.loss == "plackett_luce":
            ranked = losses.plackett_luce(score_M, batch.ranks, batch.response_tree, batch.num_trees)
            return Term(ranked.sum(), "trees")
        each = pairs.expected_loss(lambda w, r: losses.logistic(w - r - pairs.margin), score_M)
        if self.loss == "all_pairs":
            return Term(losses.prompt_means(each, batch.response_tree[pairs.chosen], batch.num_trees).sum(), "trees")
        return Term(each.sum(), "pairs")

    def check_store(self, store: Trees) -> None:
        """Refuse rows without a comparison, and soft labels or margins for plackett_luce, which has no use for them.

        Raises:
            PostTrainError: for soft labels or margins with plackett_luce.
        """
        super().check_store(store)
        if self.loss == "plackett_luce" and (store.says("flip_prob") or store.says("margin")):
            what = "margins" if store.says("margin") else "annotators who disagree"
            raise PostTrainError(f"--model.loss plackett_luce has no use for {what}; take bradley_terry or all_pairs")

    def predict_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Per response: its row, its trained tokens and its score, see `predicted_rows`."""
        return predicted_rows(batch, dataloader_idx, "score", self.scores(batch))

    # Calibration and length bias ---------------------------------------------------------------------------------

    def _track_quality(self, score_M: Tensor, length_M: Tensor, pairs: Pairs) -> None:
        margin = score_M[pairs.chosen] - score_M[pairs.rejected]
        total = float(len(margin))
        self.track("brier", calibration.brier(margin, pairs.flip_prob).sum(), total)
        sums = calibration.reliability_sums(margin, pairs.flip_prob)
        for bin_, (count, confidence, agreement) in enumerate(zip(*sums, strict=True)):
            self.track(f"_bin/{bin_}/share", count, total)
            self.track(f"_bin/{bin_}/confidence", confidence, count)
            self.track(f"_bin/{bin_}/agreement", agreement, count)
        longer, shorter = length_M[pairs.chosen], length_M[pairs.rejected]
        similar = torch.minimum(longer, shorter) >= SIMILAR_LENGTH * torch.maximum(longer, shorter)
        self.track("length/similar_accuracies", ((margin > 0) & similar).sum(), similar.sum())
        unequal = longer != shorter
        wins = torch.where(longer > shorter, margin, -margin) > 0
        preferred = torch.where(longer > shorter, 1 - pairs.flip_prob, pairs.flip_prob)
        self.track("length/longer_scored_higher", (wins & unequal).sum(), unequal.sum())
        self.track("length/longer_preferred", (preferred * unequal).sum(), unequal.sum())
        dtype = sum_dtype(score_M.device)
        x, y = score_M.to(dtype), length_M.to(dtype)
        for name, values in zip(_MOMENTS, (x, y, x * x, y * y, x * y), strict=True):
            self.track(f"_moment/{name}", values.sum(), float(len(x)))

    def derived_metrics(self, values: Mapping[str, float]) -> dict[str, float]:
        """The calibration error of the bins, and the correlation of the moments."""
        found: dict[str, float] = {}
        if "_bin/0/share" in values:
            filled = [b for b in range(calibration.BINS) if values[f"_bin/{b}/share"] > 0]
            columns = ([values[f"_bin/{b}/{name}"] for b in filled] for name in ("share", "confidence", "agreement"))
            found["ece"] = calibration.expected_calibration_error(*columns)
        if "_moment/score" in values:
            correlation = calibration.pearson(*(values[f"_moment/{name}"] for name in _MOMENTS))
            found |= {"length/score_correlation": correlation} if correlation is not None else {}
        return found
