"""Proximal policy optimisation with a value model: RLHF as in Ouyang et al. 2022 (Schulman et al. 2017, Ziegler et al.
2019).

The score of a response stands at its last sampled token, the KL from the reference at every one; GAE turns both into
advantages. The critic is a head on the policy's own trunk, or a model of its own, which may begin as the reward model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_posttrain.core.reference import Reference
from lit_posttrain.core.routing import Balance
from lit_posttrain.core.schedules import Schedule
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.identity import identity_of
from lit_posttrain.models.loading import build_policy, build_value_model, load_config
from lit_posttrain.models.policy import Policy, ValueModel, WrappedModel
from lit_posttrain.models.restore import restore
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import load_tokenizer
from lit_posttrain.on_policy.experience import num_targets
from lit_posttrain.on_policy.module import ENGINE, SAMPLING
from lit_posttrain.on_policy.options import Phases
from lit_posttrain.on_policy.policy_gradient import CLIP, Clip, EngineCorrection, PolicyGradientModule, column
from lit_posttrain.on_policy.rollouts import Stats
from lit_posttrain.ops import policy_gradient as pg
from lit_posttrain.ops.advantages import gae, whiten
from lit_posttrain.ops.kl import k3
from lit_posttrain.rewards.base import Reward
from lit_posttrain.rollout.engine import EngineSpec, Sampling
from lit_posttrain.trainer_state import ends_step
from lit_posttrain.types import Tree, TreeBatch

log = logging.getLogger(__name__)


@dataclass
class Critic:
    """What estimates how much reward is still to come.

    Args:
        model: A model of its own, a reward model or a language model with the policy's tokenizer. Default: a head on
            the policy's trunk.
        start: A reward model of the policy's architecture whose score head the head on the trunk begins with, instead
            of zeros. It has learnt to judge whole responses: if critic/explained_variance is below 0 it adds noise.
        lr: Learning rate of the critic. Default: that of the policy; a head that begins at zero wants a higher one.
        weight: Weight of its loss (0.1 to 1).
        clip: How far a step may move a value; none is no bound.
        gamma: Discount of a token (1 is usual for text).
        lam: GAE's lambda: 1 trusts what was sampled, 0 the critic.
    """

    model: ModelSpec | None = None
    start: str | None = None
    lr: float | None = None
    weight: float = 0.1
    clip: float | None = 0.2
    gamma: float = 1.0
    lam: float = 0.95

    def __post_init__(self) -> None:
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise PostTrainError("--model.critic.gamma and --model.critic.lam are shares, 0 to 1")
        if self.weight < 0 or (self.clip is not None and self.clip <= 0) or (self.lr is not None and self.lr <= 0):
            raise PostTrainError("--model.critic: weight must be at least 0, clip and lr above 0")


CRITIC, PHASES = Critic(), Phases(group_size=1, inner_epochs=2, minibatches=2)


class PPO(PolicyGradientModule):
    """PPO on sampled responses.

    Metrics: those of GRPO, and loss/value, critic/value (mean), critic/explained_variance (of the returns),
    advantage_std (before whitening), approx_kl (k3 of the policy from the one that sampled, nats a token), left_out
    (share of steps, with target_kl).
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
        critic: Critic = CRITIC,
        clip: Clip = CLIP,
        beta: float = 0.05,
        kl_in: Literal["reward", "loss"] = "reward",
        whitening: bool = True,
        entropy: float = 0.0,
        target_kl: float | None = None,
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
            critic: The value model, its loss, and GAE.
            clip: How far a step may follow the ratio of the policy to the one that sampled.
            beta: Weight of the KL from the reference; 0 does without a reference.
            kl_in: Whether the KL is taken from the reward of every token, or added to the loss.
            whitening: Whiten advantages over all tokens of a phase.
            entropy: Weight of a bonus for the entropy of the policy (nats a token).
            target_kl: Leave the further steps of a phase out once the policy is so far from the one that sampled
                (approx_kl, nats a token; 0.01 to 0.05 is usual). They count as steps. Default: never.
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
        if not 0 <= entropy < math.inf:
            raise PostTrainError(f"--model.entropy is {entropy}; it must be at least 0")
        if target_kl is not None and not target_kl > 0:
            raise PostTrainError(f"--model.target_kl is {target_kl}; it must be above 0, in nats a token")
        if critic.model is not None and critic.start is not None:
            raise PostTrainError(
                "--model.critic.start is for a head on the policy, and a critic.model has one of its own: pass "
                "--model.critic.start null"
            )
        self.critic, self.clip, self.kl_in = critic, clip, kl_in
        self.whitening, self.entropy, self.target_kl = whitening, entropy, target_kl
        self.engine_correction = engine_correction
        self.value_model: ValueModel | None = None
        self._apart: list[Tensor] = []  # of the step's micro-batches: summed k3 of the policy that sampled

    # Models ----------------------------------------------------------------------------------------------------------

    @property
    def builder(self) -> Callable[..., WrappedModel]:
        """A policy, with a value head where the critic has no model of its own."""
        if self.critic.model is not None:
            return build_policy

        def with_head(spec: ModelSpec, vocabulary: int, **options: Any) -> Policy:
            policy = build_policy(spec, vocabulary, **options)
            if not policy.fused_head:
                raise PostTrainError(
                    "a value head goes with an architecture that is proven and an output head without adapters; take a "
                    "critic of its own: --model.critic.model.path, beside --model.critic.start null"
                )
            policy.add_value_head()
            if self.critic.start is not None and not options.get("meta"):
                self._begin_head(policy, self.critic.start)
            return policy

        return with_head

    @property
    def method_options(self) -> dict[str, Any]:
        """As the base class has it, with what decides how the critic's weights are read and trained."""
        spec, found = self.critic.model, super().method_options
        if spec is None:
            return found
        found |= self.objective_of("critic.model", spec)
        lora = spec.lora
        for name in ("r", "alpha", "rslora", "dora"):
            value = None if lora is None else lora.peft_alpha if name == "alpha" else getattr(lora, name)
            found[f"critic.model.lora.{name}"] = value
        return found

    def _begin_head(self, policy: Policy, path: str) -> None:
        try:
            theirs = restore(path).scorer.transformer.score.weight
        except PostTrainError as problem:
            raise PostTrainError(f"--model.critic.start: {problem}") from problem
        assert policy.value_head is not None
        if theirs.shape != policy.value_head.weight.shape:
            raise PostTrainError(
                f"--model.critic.start {path}: its score head is {theirs.shape[1]} wide and the policy "
                f"{policy.value_head.weight.shape[1]}; take it as --model.critic.model.path instead"
            )
        with torch.no_grad():
            policy.value_head.weight.copy_(theirs)

    def configure_model(self) -> None:
        """Build the policy, its reference and the critic.

        Raises:
            PostTrainError: for a critic with another vocabulary.
        """
        super().configure_model()
        spec = self.critic.model
        if spec is None or self.value_model is not None:
            return
        theirs = load_tokenizer(spec).get_vocab()  # may have more, such as a reward model's padding token
        if any(theirs.get(token) != number for token, number in self.tokenizer.get_vocab().items()):
            raise PostTrainError(
                f"--model.critic.model.path {spec.path}: another vocabulary than the policy's, and the critic reads "
                "the policy's tokens; leave it out for a head on the policy"
            )
        routed = Balance(spec, load_config(spec, "score"))
        if spec.router_aux_loss:
            raise PostTrainError(
                f"--model.critic.model.router_aux_loss {spec.router_aux_loss:g}: PPO adds that loss to the policy's "
                "alone; leave it out"
            )
        if routed.weight and self.global_rank == 0:
            log.warning(
                "the critic's config asks for the loss that balances its experts (%s), and PPO adds it to the policy's "
                "alone",
                routed.kind,
            )
        self.value_model = self.built(build_value_model, spec, len(self.tokenizer))
        if spec.lora is not None:
            self.frozen["critic.model"] = identity_of(self.value_model)

    def trained_parts(self) -> list[dict[str, Any]]:
        """The policy, and the critic with its own learning rate."""
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        own = [p for name, p in named if name.startswith(("value_model.", "policy.value_head."))]
        taken = {id(p) for p in own}
        rate = {} if self.critic.lr is None else {"lr": self.critic.lr}
        return [{"params": [p for _, p in named if id(p) not in taken]}, {"params": own, **rate}]

    # Collecting ------------------------------------------------------------------------------------------------------

    @property
    def kl_in_loss(self) -> bool:
        """Where it was asked for."""
        return self.kl_in == "loss" and super().kl_in_loss

    @property
    def wanted_columns(self) -> set[str]:
        """The values too, and the log-probs that the KL in the reward is made of."""
        return super().wanted_columns | {"value"} | ({"old"} if self.referenced else set())

    def columns(self, batch: TreeBatch, wanted: set[str]) -> dict[str, Tensor]:
        """With `value`, what the critic says; a head on the trunk says it in the policy's own pass."""
        if self.value_model is not None:
            training = self.value_model.training
            value = self.value_model.eval()(batch)
            self.value_model.train(training)
            return super().columns(batch, wanted - {"value"}) | {"value": value}
        with self.eval_no_grad() as policy:
            out = policy(batch, temperature=self.sampling.temperature, values=True)
        assert out.values is not None
        found = super().columns(batch, wanted - {"value", "old"}) | {"value": out.values, "old": out.logprobs}
        return {name: column for name, column in found.items() if name in wanted}

    def attach_advantages(self, trees: Sequence[Tree]) -> Stats:
        """`advantage` and `return` of every token."""
        sizes = [int(np.count_nonzero(r.loss_mask)) for tree in trees for r in tree.responses]
        scores = torch.tensor([r.label("reward") for tree in trees for r in tree.responses], dtype=torch.float64)
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        value = _joined(trees, "value")
        reward = torch.zeros_like(value)
        if self.kl_in == "reward" and self.referenced:
            reward -= self.kl_coefficient * (_joined(trees, "old") - _joined(trees, "reference"))
        counted = torch.tensor(sizes) > 0
        last = torch.tensor(sizes).cumsum(0) - 1
        reward[last[counted]] += scores[counted]
        advantage, back = gae(reward, value, owner, len(sizes), self.critic.gamma, self.critic.lam)
        stats: Stats = {"critic/value": (float(value.sum()), float(len(value)))}
        if len(value) > 1:
            stats["advantage_std"] = (float(advantage.std()), 1.0)
            spread = float(back.var())
            if spread > 0:
                stats["critic/explained_variance"] = (1 - float((back - value).var()) / spread, 1.0)
        advantage = whiten(advantage) if self.whitening else advantage
        targets = [num_targets(tree) for tree in trees]
        for tree, own, returned in zip(trees, torch.split(advantage, targets), torch.split(back, targets), strict=True):
            tree.per_target["advantage"], tree.per_target["return"] = own.float().numpy(), returned.float().numpy()
        return stats

    # Training --------------------------------------------------------------------------------------------------------

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        """The terms of the policy gradient, and the critic's."""
        temperature = self.sampling.temperature
        if self.value_model is None:
            out = self.token_logprobs(batch, temperature=temperature, entropy=True, values=True)
            value = out.values
        else:
            out, value = self.token_logprobs(batch, temperature=temperature, entropy=True), self.value_model(batch)
        terms = self.policy_terms(batch, out)
        if self.target_kl is not None and not self.evaluating:
            sampled = "old" in self.wanted_columns
            old = column(batch, "old", out.logprobs) if sampled else out.logprobs.detach()
            self._apart.append(k3(old - out.logprobs.detach()).sum())
        before, back = column(batch, "value", value), column(batch, "return", value)
        terms["value"] = Term(pg.value_loss(value, before, back, self.critic.clip).sum(), "tokens", self.critic.weight)
        return terms

    def training_step(self, batch: TreeBatch, batch_idx: int) -> Tensor:
        """As the base class has it; at the end of a step decide whether the phase goes on."""
        loss = super().training_step(batch, batch_idx)
        if self.target_kl is not None and ends_step(self.trainer, batch_idx):
            apart = self.over_ranks(torch.stack(self._apart).sum())
            if bool(apart / max(batch.denominators["tokens"], 1.0) > self.target_kl):
                self.loader.leave()
            self._apart = []
            self.track("left_out", torch.tensor(float(self.loader.idle)), 1.0)
        return loss

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *how: Any, **named: Any) -> None:
        """As the base class has it. A step that is left out has no gradient at all: one of 0 would let Adam move on."""
        if self.loader.idle:
            for parameter in self.parameters():
                parameter.grad = None
            return
        super().configure_gradient_clipping(optimizer, *how, **named)


def _joined(trees: Sequence[Tree], name: str) -> Tensor:
    """(N,) float64, a column of all trees."""
    return torch.from_numpy(np.concatenate([np.zeros(0), *(tree.per_target[name] for tree in trees)]))
