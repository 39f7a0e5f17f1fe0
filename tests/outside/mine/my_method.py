"""Reward-ranked fine-tuning (RAFT, Dong et al. 2023)."""

import numpy as np

from lit_posttrain import ModelSpec, OnPolicyModule, Optim, RolloutConfig, Term, TreeBatch
from lit_posttrain.on_policy.rollouts import Rollout, Stats
from lit_posttrain.rewards import Reward


class RAFT(OnPolicyModule):
    """The log-likelihood of the best response to each prompt; prompts whose responses are all alike train nothing."""

    def __init__(
        self,
        policy: ModelSpec,
        rewards: list[Reward],
        optim: Optim = Optim(lr=1e-5),
        rollout: RolloutConfig = RolloutConfig(),
    ) -> None:
        super().__init__(policy, optim, rewards, rollout)

    def prepare(self, rollouts: list[Rollout]) -> Stats:
        prompts = len(rollouts)
        rollouts[:] = [one.only([int(np.nanargmax(one.total))]) for one in rollouts if one.has_signal]
        return {"imitated": (float(len(rollouts)), float(prompts))}

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        return {"nll": Term(-self.token_logprobs(batch).logprobs.sum(), "tokens")}
