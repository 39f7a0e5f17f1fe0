"""Policy gradients with group advantages: GRPO (Shao et al. 2024) and its family, as choices that can be combined.

A response is compared with the others to the same prompt, so there is no value model. Three things make the family: the
advantage, the ratio with its objective, and how tokens are averaged.

| | advantage | ratio | objective | aggregation |
|---|---|---|---|---|
| GRPO | scale_rewards group | token | clip | sequence |
| Dr. GRPO | scale_rewards none | token | clip | constant |
| DAPO | scale_rewards group | token | clip, clip.high 0.28, rollout.dynamic_sampling_retries, LengthPenalty | token |
| RLOO | baseline leave_one_out, scale_rewards none | token | clip | constant |
| REINFORCE++ baseline | scale_rewards batch | token | clip | token |
| GSPO | scale_rewards group | sequence, clip.low 3e-4, clip.high 4e-4 | clip | sequence |
| CISPO | scale_rewards group | token | cispo | token |

RLOO sums the log-probs of a response, as constant does (up to 1 / max_new_tokens); its authors take the KL from the
reward, here it is a term of the loss for all of them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from lit_posttrain.core.component import KLWeight
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.core.reference import Reference, ReferenceKind
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.on_policy.columns import attach
from lit_posttrain.on_policy.module import OnPolicyModule
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.policy_gradient import Clip, ImportanceSampling, PolicyGradient, Surrogate
from lit_posttrain.on_policy.rollouts import Rollout, Stats
from lit_posttrain.ops.advantages import GroupAdvantage, group_advantages, whiten
from lit_posttrain.rewards.base import Reward
from lit_posttrain.types import Tree, TreeBatch

Scale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]
_KINDS: dict[tuple[Baseline, Scale], GroupAdvantage] = {
    ("mean", "group"): "grpo",
    ("mean", "none"): "centered",
    ("mean", "batch"): "centered",  # and whitened
    ("leave_one_out", "none"): "rloo",
}


class GRPO(OnPolicyModule):
    """Policy gradients on groups of sampled responses.

    Metrics: reward, reward_std, rewards/NAME/mean, completions/mean_length, completions/clipped_ratio,
    frac_reward_zero_std, reward/missing_ratio; kl (k3, nats a token) and kl/response (k1, nats a response), entropy
    (nats a token), clip_ratio/low and clip_ratio/high (shares of tokens), rollout/engine_logp_diff (mean absolute
    difference of the engine's log-probs from the policy's, nats), rollout/tokens_per_s. Without a term for the KL or
    the entropy, groups of equal scores are not computed: then entropy, clip_ratio, approx_kl, engine_logp_diff and loss
    are of the others.
    """

    compares_scores: ClassVar[bool] = True

    def __init__(
        self,
        policy: ModelSpec,
        rewards: list[Reward],
        optim: Optim = Optim(lr=1e-6, schedule="constant", warmup_ratio=0.0),
        rollout: RolloutConfig = RolloutConfig(),
        baseline: Baseline = "mean",
        scale_rewards: Scale = "group",
        epsilon: float = 1e-4,
        ratio: Literal["token", "sequence"] = "token",
        objective: Literal["clip", "cispo"] = "clip",
        clip: Clip = Clip(),
        aggregation: Literal["token", "sequence", "constant"] = "sequence",
        beta: float = 0.0,
        entropy: float = 0.0,
        importance_sampling: ImportanceSampling = "none",
        reference: ReferenceKind = "auto",
    ) -> None:
        """
        Args:
            policy: The model to train.
            rewards: What responses are judged by: a weighted sum.
            optim: The optimizer and the schedule of its learning rate.
            rollout: How responses are sampled, and how a rollout becomes optimizer steps.
            baseline: What a score is compared with: the mean of its group, or the mean of the others (RLOO).
            scale_rewards: Divide advantages by the deviation of their group (GRPO), whiten them over all tokens of a
                rollout (batch; REINFORCE++ baseline), or neither (none; Dr. GRPO, RLOO).
            epsilon: Added to the deviation of a group (TRL 1e-4, verl 1e-6).
            ratio: Of tokens, or of whole sequences (GSPO; with clip.low 3e-4 and clip.high 4e-4).
            objective: clip, the clipped surrogate of PPO; or cispo, log-probs weighted by a ratio of at most clip.high.
            clip: How far a step may follow that ratio.
            aggregation: Tokens weigh the same (DAPO); sequences do (GRPO); or sums over max_new_tokens (Dr. GRPO).
            beta: Weight of the KL from the reference in the loss; 0 does without a reference.
            entropy: Weight of a bonus for the entropy of the policy (nats a token).
            importance_sampling: Weigh tokens by pi/pi_engine of the policy that sampled: tis (truncated at 2), mask (0
                outside 0.5 to 5), or none.
            reference: Where the reference's log-probs come from: adapter_off, copy, or auto: adapter_off where there
                are adapters, else copy.
        """
        super().__init__(policy, optim, rewards, rollout)
        if (baseline, scale_rewards) not in _KINDS:
            raise PostTrainError("--model.baseline leave_one_out goes with --model.scale_rewards none (RLOO)")
        if not 0 <= epsilon < math.inf:
            raise PostTrainError(f"--model.epsilon is {epsilon}; it must be at least 0 (1e-4 is usual)")
        self.baseline, self.scale_rewards, self.epsilon = baseline, scale_rewards, epsilon
        self.surrogate = Surrogate(
            clip=clip,
            ratio=ratio,
            objective=objective,
            aggregation=aggregation,
            importance_sampling=importance_sampling,
            entropy=entropy,
        )
        self.beta, self.kl = beta, KLWeight(beta)
        self.add("kl", self.kl)
        self.reference = Reference(self, reference, used=beta > 0, sampled=True)
        self.gradient_terms = PolicyGradient(self, self.surrogate, self.kl)

    @property
    def method_options(self) -> dict[str, Any]:
        """Those of the base class, and of the surrogate."""
        return super().method_options | self.surrogate.options

    @property
    def wanted_columns(self) -> set[str]:
        """The reference's log-probs too."""
        return super().wanted_columns | ({"ref_logprobs"} if self.kl.used else set())

    def prepare(self, rollouts: list[Rollout]) -> Stats:
        """`advantage` of every token: its response's."""
        self.attach_columns(rollouts)
        trees = [one.tree for one in rollouts]
        score = torch.from_numpy(np.concatenate([one.total for one in rollouts]))
        group = torch.tensor([number for number, tree in enumerate(trees) for _ in tree.responses])
        kind = _KINDS[self.baseline, self.scale_rewards]
        advantage = group_advantages(score, group, len(trees), kind, self.epsilon)
        sizes = [response.num_trained for tree in trees for response in tree.responses]
        of_tokens = advantage.repeat_interleave(torch.tensor(sizes))
        attach(trees, "advantage", whiten(of_tokens) if self.scale_rewards == "batch" else of_tokens)
        return self.gradient_terms.measured_kl(trees)

    def has_gradient(self, tree: Tree) -> bool:
        """False for a group of equal scores without other terms: its loss is 0 whatever the policy is."""
        alone = not self.kl.coefficient and not self.surrogate.entropy
        return super().has_gradient(tree) and not (alone and not tree.per_target["advantage"].any())

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The terms of the policy gradient."""
        out = self.token_logprobs(batch, temperature=self.rollout.temperature, entropy=True)
        return self.gradient_terms.terms(batch, out)

    def on_step_end(self, batch: TreeBatch) -> None:
        """Keep the step's KL."""
        self.gradient_terms.end_step()
