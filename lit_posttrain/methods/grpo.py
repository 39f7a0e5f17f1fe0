"""Policy gradients with group advantages: GRPO (Shao et al. 2024) and its family, as choices that can be combined.

A response is compared with the others to the same prompt, so there is no value model. Three things make the family: the
advantage, the ratio with its objective, and how tokens are averaged.

| | advantage | ratio | objective | aggregation |
|---|---|---|---|---|
| GRPO | grpo | token | clip | sequence |
| Dr. GRPO | centered | token | clip | constant |
| DAPO | grpo | token | clip, clip.high 0.28, phases.top_up, LengthPenalty | token |
| RLOO | rloo | token | clip | constant |
| REINFORCE++ baseline | whitened | token | clip | token |
| GSPO | grpo | sequence, clip.low 3e-4, clip.high 4e-4 | clip | sequence |
| CISPO | grpo | token | cispo | token |

RLOO sums the log-probs of a response, as constant does (up to 1 / max_new_tokens); its authors take the KL from the
reward, here it is a term of the loss for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable

from lit_posttrain.core.reference import Reference
from lit_posttrain.core.schedules import Schedule
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.on_policy.experience import num_targets
from lit_posttrain.on_policy.module import ENGINE, PHASES, SAMPLING
from lit_posttrain.on_policy.options import Phases
from lit_posttrain.on_policy.policy_gradient import CLIP, Clip, EngineCorrection, PolicyGradientModule
from lit_posttrain.on_policy.rollouts import Stats
from lit_posttrain.ops.advantages import group_advantages, whiten
from lit_posttrain.rewards.base import Reward
from lit_posttrain.rollout.engine import EngineSpec, Sampling
from lit_posttrain.types import Tree, TreeBatch


class GRPO(PolicyGradientModule):
    """Policy gradients on groups of sampled responses.

    Metrics: reward, reward_std, rewards/NAME/mean, completions/mean_length, completions/clipped_ratio,
    frac_reward_zero_std, unscored; kl (k3, nats a token) and kl/response (k1, nats a response), entropy (nats a token),
    clip_ratio/low and clip_ratio/high (shares of tokens), rollout/engine_logp_diff (mean absolute difference of the
    engine's log-probs from the policy's, nats), rollout/tokens_per_s. Without a term for the KL or the entropy, groups
    of equal scores are not computed: then entropy, clip_ratio, approx_kl, engine_logp_diff and loss are of the others.
    """

    def __init__(
        self,
        policy: ModelSpec,
        rewards: list[Reward],
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        schedule: Schedule = "constant",
        warmup: float = 0.0,
        sampling: Sampling = SAMPLING,
        phases: Phases = PHASES,
        advantage: Literal["grpo", "centered", "rloo", "whitened"] = "grpo",
        epsilon: float = 1e-4,
        ratio: Literal["token", "sequence"] = "token",
        objective: Literal["clip", "cispo"] = "clip",
        clip: Clip = CLIP,
        aggregation: Literal["token", "sequence", "constant"] = "sequence",
        beta: float = 0.0,
        entropy: float = 0.0,
        engine_correction: EngineCorrection = "none",
        engine: EngineSpec = ENGINE,
        reference: Reference = "auto",
        reward_timeout: float = 60.0,
    ) -> None:
        """
        Args:
            policy: The model to train.
            rewards: What responses are judged by: a weighted sum.
            optimizer: Any torch optimizer, such as torch.optim.AdamW with its learning rate.
            schedule: How the learning rate falls after warm-up, per optimizer step.
            warmup: Share of all optimizer steps over which the learning rate rises from zero.
            sampling: How responses are drawn: max_new_tokens and temperature.
            phases: Responses to a prompt, and how a rollout phase becomes optimizer steps.
            advantage: grpo: centred and divided by the group's deviation. centered: not divided (Dr. GRPO). rloo:
                against the mean of the others. whitened: centred, then whitened over all tokens (REINFORCE++ baseline).
            epsilon: Added to the deviation for grpo (TRL 1e-4, verl 1e-6).
            ratio: Of tokens, or of whole sequences (GSPO; with clip.low 3e-4 and clip.high 4e-4).
            objective: clip, the clipped surrogate of PPO; or cispo, log-probs weighted by a ratio of at most clip.high.
            clip: How far a step may follow that ratio.
            aggregation: Tokens weigh the same (DAPO); sequences do (GRPO); or sums over max_new_tokens (Dr. GRPO).
            beta: Weight of the KL from the reference in the loss; 0 does without a reference.
            entropy: Weight of a bonus for the entropy of the policy (nats a token).
            engine_correction: Weigh tokens by pi/pi_engine of the policy that sampled: truncate (at most 2, TIS), mask
                (0 outside 0.5 to 5), or none.
            engine: What draws the responses: the model itself (hf) or vLLM.
            reference: Where the reference's log-probs come from: adapter_off, copy, or auto: adapter_off where there
                are adapters, else copy.
            reward_timeout: Seconds that a reward may take for the responses of a phase.
        """
        super().__init__(
            policy, optimizer, schedule, warmup, reference, rewards, reward_timeout, sampling, phases, engine, beta
        )
        if phases.group_size < 2:
            raise PostTrainError("--model.phases.group_size 1: a response is compared with others; take at least 2")
        if not 0 <= entropy < math.inf:
            raise PostTrainError(f"--model.entropy is {entropy}; it must be at least 0")
        if objective == "cispo" and (ratio == "sequence" or clip.high < 1 or clip.dual is not None):
            raise PostTrainError(
                "--model.objective cispo weighs tokens by a ratio of at most clip.high: take --model.ratio token, "
                "--model.clip.high 5 and no clip.dual"
            )
        if not 0 <= epsilon < math.inf:
            raise PostTrainError(f"--model.epsilon is {epsilon}; it must be at least 0 (1e-4 is usual)")
        self.advantage, self.epsilon = advantage, epsilon
        self.ratio, self.objective, self.aggregation = ratio, objective, aggregation
        self.clip = clip
        self.entropy, self.engine_correction = entropy, engine_correction

    def attach_advantages(self, trees: Sequence[Tree]) -> Stats:
        """`advantage` of every token: its response's."""
        responses = [(group, response) for group, tree in enumerate(trees) for response in tree.responses]
        score = torch.tensor([response.label("reward") for _, response in responses], dtype=torch.float64)
        group = torch.tensor([number for number, _ in responses], dtype=torch.int64)
        kind = "centered" if self.advantage == "whitened" else self.advantage
        advantage = group_advantages(score, group, len(trees), kind, self.epsilon)
        sizes = torch.tensor([int(np.count_nonzero(response.loss_mask)) for _, response in responses])
        of_tokens = advantage.repeat_interleave(sizes)
        if self.advantage == "whitened":
            of_tokens = whiten(of_tokens)
        for tree, own in zip(trees, torch.split(of_tokens, [num_targets(tree) for tree in trees]), strict=True):
            tree.per_target["advantage"] = own.float().numpy()
        return {}

    def teaches(self, tree: Tree) -> bool:
        """Not a group of equal scores, where no other term has a say: its loss is 0 whatever the policy is."""
        alone = not self.kl_coefficient and not self.entropy
        return super().teaches(tree) and not (alone and not tree.per_target["advantage"].any())

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The terms of the policy gradient."""
        return self.policy_terms(batch, self.token_logprobs(batch, temperature=self.sampling.temperature, entropy=True))
