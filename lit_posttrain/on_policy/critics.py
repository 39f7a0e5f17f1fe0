"""Critics: what a state is worth, learnt beside the policy, by name: of the reward, of a cost, ..."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lit_posttrain.core.beside import as_read, own_layout, refuse_text_options, require_same_vocabulary
from lit_posttrain.core.building import build_model
from lit_posttrain.core.component import Component
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.resume import model_objective
from lit_posttrain.core.routing import Balance
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.identity import identity_of
from lit_posttrain.models.loading import build_policy, build_value_model, load_config
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.policy import Policy, WrappedModel
from lit_posttrain.models.restore import restore
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.on_policy.columns import attach, joined
from lit_posttrain.on_policy.policy_gradient import column
from lit_posttrain.on_policy.rollouts import Stats
from lit_posttrain.ops.advantages import gae
from lit_posttrain.ops.policy_gradient import value_loss
from lit_posttrain.types import RowLayout, Tree, TreeBatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Critic:
    """A value model, its loss, and generalised advantage estimation (Schulman et al. 2016).

    Args:
        model: A model of its own, usually a reward model. Default: a head on the policy.
        start: A reward model of the policy's architecture whose score head the head on the policy begins with, instead
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
        if not (self.weight >= 0 and (self.clip is None or self.clip > 0) and (self.lr is None or self.lr > 0)):
            raise PostTrainError("--model.critic: weight must be at least 0, clip and lr above 0")
        if self.model is not None and self.start is not None:
            raise PostTrainError(
                "--model.critic.start is for a head on the policy, and a critic.model has one of its own: pass "
                "--model.critic.start null"
            )


class Critics(Component):
    """The critics of a method, by name. Columns of trees: `value/NAME` as the rollout was sampled, `return/NAME`.

    The models of their own are the module's `value_models`; heads are the policy's `value_heads`.
    """

    def __init__(self, module: PostTrainingModule, **critics: Critic) -> None:
        self.module, self.options = module, dict[str, Critic]()
        for name, critic in critics.items():
            self.add(name, critic)
        self._layouts: dict[str, RowLayout | None] = {}  # of models of their own: how they read batches
        module.value_models = nn.ModuleDict()
        module.add("critics", self)

    def add(self, name: str, critic: Critic) -> None:
        """A further critic, in a method's constructor. Its reward of every token comes from `PPO.token_rewards`;
        `PPO.combined` says what becomes of its advantages."""
        if critic.model is not None:
            refuse_text_options(critic.model, _option(name))
        self.options[name] = critic

    # Building --------------------------------------------------------------------------------------------------------

    @property
    def heads(self) -> list[str]:
        """Critics that are heads on the policy."""
        return [name for name, critic in self.options.items() if critic.model is None]

    @property
    def models(self) -> Mapping[str, WrappedModel]:
        """Critics with a model of their own, once they are built."""
        held: Any = self.module.value_models
        return dict(held.items())

    @property
    def builder(self) -> Callable[..., WrappedModel]:
        """The function that builds the policy, with its value heads, before it is sharded."""

        def with_heads(spec: ModelSpec, vocabulary: int, **how: Any) -> Policy:
            policy = build_policy(spec, vocabulary, **how)
            if self.heads and not policy.fused_head:
                raise PostTrainError(
                    "a value head goes with an architecture that is proven and an output head without adapters; take a "
                    "critic of its own: --model.critic.model.path, beside --model.critic.start null"
                )
            for name in self.heads:
                head, start = policy.add_value_head(name), self.options[name].start
                if start is not None and not how.get("meta"):
                    _begin(head, start)
            return policy

        return with_heads

    def configure_model(self) -> None:
        """Build the critics with a model of their own.

        Raises:
            PostTrainError: for a critic with another vocabulary.
        """
        module, models = self.module, self.module.value_models
        assert isinstance(models, nn.ModuleDict)
        for name, critic in self.options.items():
            spec = critic.model
            if spec is None or name in models:
                continue
            require_same_vocabulary(module, spec, _option(name))
            self._tell_of_routers(spec)
            self._layouts[name] = own_layout(module, spec, "score")
            vocabulary = len(module.tokenizer)
            models[name] = build_model(module, build_value_model, spec, vocabulary, dropout=module.dropout)
            if spec.lora is not None:
                module.frozen[_option(name)] = identity_of(models[name])  # type: ignore[arg-type]  # a ValueModel

    @cached_property
    def max_positions(self) -> int | None:
        """The longest sequence that all models of their own take."""
        specs = [critic.model for critic in self.options.values() if critic.model is not None]
        limits = [max_positions(load_config(spec, "score")) for spec in specs]
        return min((limit for limit in limits if limit is not None), default=None)

    def _tell_of_routers(self, spec: ModelSpec) -> None:
        if spec.router_aux_loss:
            raise PostTrainError(
                f"--model.critic.model.router_aux_loss {spec.router_aux_loss:g}: PPO adds that loss to the policy's "
                "alone; leave it out"
            )
        routed = Balance(spec, load_config(spec, "score"))
        if routed.weight and self.module.global_rank == 0:
            log.warning(
                "the critic's config asks for the loss that balances its experts (%s), and PPO adds it to the policy's "
                "alone",
                routed.kind,
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters of every critic, with its learning rate."""
        groups = []
        for name, critic in self.options.items():
            heads = self.module.language_model.value_heads
            owner = self.models[name] if critic.model is not None else heads[name]
            trained = [p for p in owner.parameters() if p.requires_grad]
            groups.append({"params": trained, **({} if critic.lr is None else {"lr": critic.lr})})
        return groups

    def objective(self) -> dict[str, Any]:
        """Options by which the critics' own models are read and trained, for a resume to compare."""
        found: dict[str, Any] = {}
        for name, critic in self.options.items():
            if critic.model is None:
                continue
            found |= model_objective(_option(name), critic.model, self.module.dropout)
            lora = critic.model.lora
            for part in ("r", "alpha", "rslora", "dora"):
                value = None if lora is None else lora.peft_alpha if part == "alpha" else getattr(lora, part)
                found[f"{_option(name)}.lora.{part}"] = value
        return found

    # Using -----------------------------------------------------------------------------------------------------------

    def predicted(self, batch: TreeBatch, of_heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`value/NAME` (N,) of every critic, under no_grad. of_heads: what the policy's heads have said already."""
        found = {f"value/{name}": values for name, values in of_heads.items()}
        for name, model in self.models.items():
            training = model.training
            model.eval()
            with torch.no_grad():
                found[f"value/{name}"] = self._read(name, batch)
            model.train(training)
        return found

    def values(self, batch: TreeBatch, of_heads: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """(N,) values of every critic, with a graph."""
        heads = of_heads or {}
        return {name: self._read(name, batch) if name in self.models else heads[name] for name in self.options}

    def _read(self, name: str, batch: TreeBatch) -> Tensor:
        """(N,) values of a critic with a model of its own, which may pack rows in another way than the policy."""
        own, order = as_read(batch, self._layouts[name])
        values: Tensor = self.models[name](own)
        return values[order]

    def advantages(self, trees: Sequence[Tree], rewards: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Stats]:
        """(N,) float64 advantages of all trained tokens, by critic; the returns are written into the trees. rewards:
        (N,) float64, by critic, of every trained token.

        Raises:
            PostTrainError: for a critic without rewards.
        """
        lacking = [name for name in self.options if name not in rewards]
        if lacking:
            raise PostTrainError(
                f"token_rewards of {type(self.module).__name__} has nothing for the critic {lacking[0]}: let it return "
                "a reward of every trained token by that name"
            )
        sizes = [r.num_trained for tree in trees for r in tree.responses]
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        found: dict[str, Tensor] = {}
        stats: Stats = {}
        for name, critic in self.options.items():
            value = joined(trees, f"value/{name}")
            advantage, back = gae(rewards[name], value, owner, len(sizes), critic.gamma, critic.lam)
            found[name] = advantage
            attach(trees, f"return/{name}", back)
            shown = _shown(name)
            stats[f"critic{shown}/value"] = (float(value.sum()), float(len(value)))
            spread = float(back.var()) if len(value) > 1 else 0.0
            if len(value) > 1:
                stats[f"advantage_std{shown}"] = (float(advantage.std()), 1.0)
            if spread > 0:
                explained = 1 - float((back - value).var()) / spread
                stats[f"critic{shown}/explained_variance"] = (explained, 1.0)
        return found, stats

    def terms(self, batch: TreeBatch, values: Mapping[str, Tensor]) -> dict[str, Term]:
        """The clipped squared error of every critic from its returns."""
        found = {}
        for name, value in values.items():
            critic = self.options[name]
            before, back = column(batch, f"value/{name}", value), column(batch, f"return/{name}", value)
            loss = value_loss(value, before, back, critic.clip).sum()
            found[f"value{_shown(name)}"] = Term(loss, "tokens", critic.weight)
        return found


def _shown(name: str) -> str:
    """Of a critic in metrics: that of the reward has no name."""
    return "" if name == "reward" else f"/{name}"


def _option(name: str) -> str:
    return "critic.model" if name == "reward" else f"critics.{name}.model"


def _begin(head: nn.Linear, path: str) -> None:
    """Let a value head begin with the score head of a reward model."""
    try:
        theirs = restore(path).scorer.transformer.score.weight
    except PostTrainError as problem:
        raise PostTrainError(f"--model.critic.start: {problem}") from problem
    if theirs.shape != head.weight.shape:
        raise PostTrainError(
            f"--model.critic.start {path}: its score head is {theirs.shape[1]} wide and the policy "
            f"{head.weight.shape[1]}; take it as --model.critic.model.path instead"
        )
    with torch.no_grad():
        head.weight.copy_(theirs)
