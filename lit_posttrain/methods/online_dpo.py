"""Online DPO (Guo et al. 2024): preference optimisation on the policy's own responses, ranked by rewards."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lit_posttrain.core.dpo import DPOLoss, check_dpo, dpo_term, summed_ratios
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.preference import track_pairs
from lit_posttrain.core.reference import Reference, ReferenceKind
from lit_posttrain.core.terms import Term
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.on_policy.module import OnPolicyModule
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.ranking import Comparison, ranked
from lit_posttrain.on_policy.rollouts import Rollout, Stats
from lit_posttrain.rewards.base import Reward
from lit_posttrain.types import TreeBatch


class OnlineDPO(OnPolicyModule):
    """DPO on sampled responses: the best to each prompt against the worst, or all pairs of unequal score.

    The loss is that of `DPO`. Responses without a score and, with mask_truncated, those that were cut off are in no
    pair; a prompt whose responses all have the same score trains nothing. Metrics: those of `DPO`, reward, reward_std,
    rewards/NAME/mean, completions/mean_length, and compared (share of the prompts with a pair).
    """

    splits_groups: ClassVar[bool] = False
    compares_scores: ClassVar[bool] = True
    in_bar: ClassVar[tuple[str, ...]] = ("reward", "loss")

    def __init__(
        self,
        policy: ModelSpec,
        rewards: list[Reward],
        pairs: Comparison = "best_worst",
        optim: Optim = Optim(lr=1e-6, schedule="constant", warmup_ratio=0.0),
        rollout: RolloutConfig = RolloutConfig(group_size=4),
        beta: float = 0.1,
        loss: DPOLoss = "sigmoid",
        label_smoothing: float = 0.0,
        reference: ReferenceKind = "auto",
    ) -> None:
        """
        Args:
            policy: The model to train.
            rewards: What responses are ranked by: a weighted sum.
            pairs: The best response to a prompt against the worst, or all pairs of unequal score.
            optim: The optimizer and the schedule of its learning rate.
            rollout: How responses are sampled, and how a rollout becomes optimizer steps.
            beta: How closely the policy is held to the reference; larger is closer.
            loss: The function of a pair's implicit rewards, as for DPO; plackett_luce ranks all responses to a prompt
                at once with pairs all, and is sigmoid with best_worst.
            label_smoothing: Share of pairs taken to be ranked wrongly, for conservative and robust; below 0.5.
            reference: Where the reference's log-probs come from: adapter_off, copy, or auto: adapter_off where there
                are adapters, else copy.
        """
        super().__init__(policy, optim, rewards, rollout)
        check_dpo(loss, beta, label_smoothing)
        self.pairs, self.beta, self.loss, self.label_smoothing = pairs, beta, loss, label_smoothing
        self.reference = Reference(self, reference, sampled=True)

    @property
    def wanted_columns(self) -> set[str]:
        """The reference's log-probs, once for all steps of a rollout."""
        return {"ref_logprobs"}

    def columns(self, batch: TreeBatch, wanted: set[str]) -> dict[str, Tensor]:
        """`ref_logprobs`."""
        return self.reference.columns(batch, wanted, temperature=1.0)

    def prepare(self, rollouts: list[Rollout]) -> Stats:
        """`rank` of the responses that are compared; what is not compared is taken out."""
        prompts = len(rollouts)
        rollouts[:] = [found for one in rollouts if (found := ranked(one, self.pairs)) is not None]
        self.attach_columns(rollouts)
        return {"compared": (float(len(rollouts)), float(prompts))}

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The preference term."""
        reference = self.reference.logprobs(batch)
        logprobs, pairs = self.token_logprobs(batch).logprobs, batch.pairs
        self.reference.track_distance(logprobs - reference, batch)
        ratio = summed_ratios(batch, logprobs - reference, pairs)
        track_pairs(self, self.beta * ratio, pairs, batch.sum(logprobs))
        return {"preference": dpo_term(batch, ratio, pairs, self.loss, self.beta, self.label_smoothing)}
