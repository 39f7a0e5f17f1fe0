"""Proximal policy optimisation (Schulman et al. 2017; RLHF: Ziegler et al. 2019, Ouyang et al. 2022).

A critic says what every state is worth; generalised advantage estimation compares what followed with it. The critic is
a head on the policy, or a model of its own that begins as a reward model. The KL from the reference is taken from
the reward of every token, or is a term of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_posttrain.core.component import KLWeight
from lit_posttrain.core.optimisation import Optim, ParameterGroup
from lit_posttrain.core.reference import Reference, ReferenceKind
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.policy import WrappedModel
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.on_policy.columns import attach, joined
from lit_posttrain.on_policy.critics import Critic, Critics
from lit_posttrain.on_policy.module import OnPolicyModule
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.policy_gradient import Clip, ImportanceSampling, PolicyGradient, Surrogate
from lit_posttrain.on_policy.rollouts import Rollout, Stats
from lit_posttrain.on_policy.target_kl import TargetKL
from lit_posttrain.ops.advantages import whiten
from lit_posttrain.rewards.base import Reward
from lit_posttrain.types import Tree, TreeBatch


class PPO(OnPolicyModule):
    """PPO on sampled responses.

    Metrics: those of GRPO, and loss/value, critic/value (mean), critic/explained_variance (of the returns),
    advantage_std (before whitening), approx_kl (k3 of the policy from the one that sampled, nats a token),
    skipped_steps (share of steps, with target_kl).
    """

    def __init__(
        self,
        policy: ModelSpec,
        rewards: list[Reward],
        critic: Critic = Critic(),
        optim: Optim = Optim(lr=1e-6, schedule="constant", warmup_ratio=0.0),
        rollout: RolloutConfig = RolloutConfig(group_size=1, inner_epochs=2, minibatches=2),
        clip: Clip = Clip(),
        beta: float = 0.05,
        kl_in: Literal["reward", "loss"] = "reward",
        whitening: bool = True,
        entropy: float = 0.0,
        target_kl: float | None = None,
        reference: ReferenceKind = "auto",
        importance_sampling: ImportanceSampling = "none",
    ) -> None:
        """
        Args:
            policy: The model to train.
            rewards: What responses are judged by: a weighted sum.
            critic: The value model, its loss, and GAE.
            optim: The optimizer and the schedule of its learning rate.
            rollout: How responses are sampled, and how a rollout becomes optimizer steps.
            clip: How far a step may follow the ratio of the policy to the one that sampled.
            beta: Weight of the KL from the reference; 0 does without a reference.
            kl_in: Take the KL from the reward of every token, or add it to the loss.
            whitening: Whiten advantages over all tokens of a rollout.
            entropy: Weight of a bonus for the entropy of the policy (nats a token).
            target_kl: Skip the further steps of a rollout once the policy is so far from the one that sampled
                (approx_kl, nats a token; 0.01 to 0.05 is usual). They count as steps. Default: never.
            reference: Where the reference's log-probs come from: adapter_off, copy, or auto: adapter_off where there
                are adapters, else copy.
            importance_sampling: Weigh tokens by pi/pi_engine of the policy that sampled: tis (truncated at 2), mask (0
                outside 0.5 to 5), or none.
        """
        super().__init__(policy, optim, rewards, rollout)
        if target_kl is not None and not target_kl > 0:
            raise PostTrainError(f"--model.target_kl is {target_kl}; it must be above 0, in nats a token")
        self.critic, self.critics = critic, Critics(self, reward=critic)
        self.kl_in, self.whitening, self.target_kl = kl_in, whitening, target_kl
        self.surrogate = Surrogate(clip=clip, importance_sampling=importance_sampling, entropy=entropy)
        self.beta, self.kl = beta, KLWeight(beta)
        self.add("kl", self.kl)
        self.reference = Reference(self, reference, used=beta > 0, sampled=True)
        self.gradient_terms = PolicyGradient(self, self.surrogate, self.kl, kl_in == "loss")
        self.stop = TargetKL(self, target_kl)

    @property
    def builder(self) -> Callable[..., WrappedModel]:
        """A policy with the critics' heads."""
        return self.critics.builder

    @property
    def method_options(self) -> dict[str, Any]:
        """Those of the base class and of the surrogate, and what the critics' models are trained for."""
        return super().method_options | self.surrogate.options | self.critics.objective()

    def trained_parts(self) -> list[ParameterGroup]:
        """The policy, and the critics with their own learning rates."""
        critics = self.critics.parameter_groups()
        taken = {id(p) for group in critics for p in group["params"]}
        return [{"params": [p for p in self.parameters() if p.requires_grad and id(p) not in taken]}, *critics]

    # Collecting ------------------------------------------------------------------------------------------------------

    @property
    def wanted_columns(self) -> set[str]:
        """The values too, and the log-probs that the KL in the reward is made of."""
        values = {f"value/{name}" for name in self.critics.options}
        return super().wanted_columns | values | ({"old_logprobs", "ref_logprobs"} if self.kl.used else set())

    def columns(self, batch: TreeBatch, wanted: set[str]) -> dict[str, Tensor]:
        """`value/NAME`, what the critics say; heads on the policy say it in the pass for `old_logprobs`."""
        if not self.critics.heads:
            return super().columns(batch, wanted) | self.critics.predicted(batch, {})
        own = super().columns(batch, wanted - {"old_logprobs"})
        with self.eval_no_grad() as policy:
            out = policy(batch, temperature=self.rollout.temperature, values=True)
        found = own | self.critics.predicted(batch, out.values) | {"old_logprobs": out.logprobs}
        return {name: column for name, column in found.items() if name in wanted}

    def prepare(self, rollouts: list[Rollout]) -> Stats:
        """`advantage` of every token, and `return/NAME` for every critic."""
        self.attach_columns(rollouts)
        trees = [one.tree for one in rollouts]
        measured = self.gradient_terms.measured_kl(trees)
        advantages, stats = self.critics.advantages(trees, self.token_rewards(rollouts))
        advantage = self.combined(advantages)
        attach(trees, "advantage", whiten(advantage) if self.whitening else advantage)
        return measured | stats

    def token_rewards(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """(N,) float64, by critic: the reward of every trained token. `reward`: the total at a response's last one, and
        with kl_in reward minus the weighted KL of each."""
        trees = [one.tree for one in rollouts]
        reward = at_last_token(trees, np.concatenate([one.total for one in rollouts]))
        if self.kl_in == "reward" and self.kl.used:
            reward = -self.kl.coefficient * (joined(trees, "old_logprobs") - joined(trees, "ref_logprobs")) + reward
        return {"reward": reward}

    def combined(self, advantages: Mapping[str, Tensor]) -> Tensor:
        """(N,) the advantages of all critics as the one that the policy follows; here that of the reward."""
        return advantages["reward"]

    # Training --------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """
        Raises:
            PostTrainError: for a further critic of which the class does not say what it is paid, or what its advantages
                are for.
        """
        for name in ("token_rewards", "combined"):
            if len(self.critics.options) > 1 and getattr(type(self), name) is getattr(PPO, name):
                raise PostTrainError(
                    f"{type(self).__name__} has the critics {', '.join(self.critics.options)}, and `{name}` is that of "
                    "PPO, which knows one: define it"
                )
        super().on_fit_start()

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The terms of the policy gradient, and the critics'."""
        heads = bool(self.critics.heads)
        out = self.token_logprobs(batch, temperature=self.rollout.temperature, entropy=True, values=heads)
        values = self.critics.values(batch, out.values)
        terms = self.gradient_terms.terms(batch, out)
        self.stop.measure(batch, out.logprobs.detach())
        return terms | self.critics.terms(batch, values)

    def on_step_end(self, batch: TreeBatch) -> None:
        """Keep the step's KL; beyond target_kl skip the rest of the rollout."""
        self.gradient_terms.end_step()
        self.stop.end_step(batch)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *how: Any, **named: Any) -> None:
        """A step that is skipped has no gradient at all: one of 0 would let Adam move on."""
        if self.loader.idle:
            for parameter in self.parameters():
                parameter.grad = None
            return
        super().configure_gradient_clipping(optimizer, *how, **named)


def at_last_token(trees: Sequence[Tree], scores_M: np.ndarray[Any, Any]) -> Tensor:
    """(N,) float64: the score of each response at its last trained token, 0 elsewhere."""
    sizes = torch.tensor([r.num_trained for tree in trees for r in tree.responses])
    found, last, trains = torch.zeros(int(sizes.sum()), dtype=torch.float64), sizes.cumsum(0) - 1, sizes > 0
    found[last[trains]] = torch.from_numpy(scores_M)[trains]
    return found
