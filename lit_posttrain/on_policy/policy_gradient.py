"""The loss that PPO and the GRPO family share: a clipped surrogate, a KL term and an entropy bonus."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.on_policy.module import OnPolicyModule
from lit_posttrain.ops import policy_gradient as pg
from lit_posttrain.ops.kl import k1, k3
from lit_posttrain.ops.logprobs import TokenLogprobs
from lit_posttrain.ops.policy_gradient import Aggregation
from lit_posttrain.trainer_state import ends_step
from lit_posttrain.types import TreeBatch

EngineCorrection = Literal["none", "truncate", "mask"]


@dataclass
class Clip:
    """How far a step may follow the ratio of the policy to the one that sampled.

    Args:
        low: How far below 1 a ratio is followed; cispo has no such bound.
        high: How far above 1 (DAPO 0.28). For cispo the largest weight itself (TRL 5).
        dual: For bad responses the loss is at most so many times -A; 3 is usual, none by default.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        if self.low < 0 or self.high <= 0:
            raise PostTrainError("--model.clip.low must be at least 0 and --model.clip.high above 0 (0.2 is usual)")
        if self.dual is not None and self.dual <= 1:
            raise PostTrainError(f"--model.clip.dual is {self.dual}; it must be above 1 (3 is usual)")


CLIP = Clip()


class PolicyGradientModule(OnPolicyModule):
    """Base class with the terms of a policy gradient. A subclass sets the attributes below in its constructor."""

    clip: Clip
    ratio: Literal["token", "sequence"] = "token"
    objective: Literal["clip", "cispo"] = "clip"
    aggregation: Aggregation = "token"
    entropy: float = 0.0
    engine_correction: EngineCorrection = "none"

    @cached_property
    def _apart_k1(self) -> list[Tensor]:
        """Of the micro-batches of the step at hand the summed k1 and the responses, where the step measures the phase's
        KL itself."""
        return []

    @property
    def kl_in_loss(self) -> bool:
        """Whether the KL from the reference is a term of the loss, and not of the reward."""
        return self.kl_coefficient > 0

    def policy_terms(self, batch: TreeBatch, out: TokenLogprobs) -> dict[str, Term]:
        """The policy term, and those of the KL and of the entropy where asked for."""
        logprob, count = out.logprobs, float(len(batch.target_response))
        assert out.entropy is not None
        # where the policy is still the one that sampled its own log-probs are the old ones
        old = column(batch, "old", logprob) if "old" in self.wanted_columns else logprob.detach()
        engine = column(batch, "engine", logprob)
        loss = self._surrogate(logprob, old, column(batch, "advantage", logprob), batch)
        if self.engine_correction != "none":
            loss = loss * pg.engine_weight(old, engine, self.engine_correction)
        unit: Literal["tokens", "responses"] = "tokens" if self.aggregation == "token" else "responses"
        terms = {"policy": Term(self.aggregated(loss, batch), unit)}
        if self.kl_in_loss:
            distance = pg.kl_loss(logprob, column(batch, "reference", logprob), old)
            terms["kl"] = Term(self.aggregated(distance, batch), unit, self.kl_coefficient)
        if self.entropy:
            terms["entropy"] = Term(-out.entropy.sum(), "tokens", self.entropy)
        if self.referenced:
            self.track("kl_coefficient", torch.tensor(self.kl_coefficient), 1.0)
        self.track("entropy", out.entropy.sum(), count)
        self.track("rollout/engine_logp_diff", (old - engine).abs().sum(), count)
        self.track("approx_kl", k3(old - logprob.detach()).sum(), count)
        if self.referenced and "old" not in self.wanted_columns:  # else the phase has measured it
            apart = logprob.detach() - column(batch, "reference", logprob)
            self.track("kl", k3(apart).sum(), count)
            responses = (batch.target_response.bincount() > 0).sum()  # that have tokens which count
            self.track("kl/response", k1(apart).sum(), responses)
            self._apart_k1.append(torch.stack([k1(apart).sum(), responses.to(apart.dtype)]))
        return terms

    def training_step(self, batch: TreeBatch, batch_idx: int) -> Tensor:
        """As the base class has it; at a step's end keep its KL where no pass before it has measured one."""
        loss = super().training_step(batch, batch_idx)
        if ends_step(self.trainer, batch_idx) and self._apart_k1:
            total, responses = self.over_ranks(torch.stack(self._apart_k1).sum(0)).tolist()
            self._phase_kl = (total, responses) if responses else None
            self._apart_k1 = []
        return loss

    def aggregated(self, loss_N: Tensor, batch: TreeBatch) -> Tensor:
        """The sum that the step's count divides."""
        length = self.sampling.max_new_tokens
        return pg.aggregated(loss_N, batch.target_response, batch.num_responses, self.aggregation, length)

    def _surrogate(self, logprob: Tensor, old: Tensor, advantage: Tensor, batch: TreeBatch) -> Tensor:
        if self.ratio == "sequence":
            ratio = pg.sequence_ratio(logprob, old, batch.target_response, batch.num_responses)
        else:
            ratio = pg.token_ratio(logprob, old)
        count = float(len(ratio))
        if self.objective == "cispo":
            self.track("clip_ratio/high", ((ratio > self.clip.high) & (advantage > 0)).sum(), count)
            return pg.cispo(advantage, ratio, logprob, self.clip.high)
        low, high = pg.clip_shares(advantage, ratio, self.clip.low, self.clip.high)
        self.track("clip_ratio/low", low.sum(), count)
        self.track("clip_ratio/high", high.sum(), count)
        return pg.clipped(advantage, ratio, self.clip.low, self.clip.high, self.clip.dual)


def column(batch: TreeBatch, name: str, like: Tensor) -> Tensor:
    """(N,) a column of the batch's targets; of a micro-batch without trees, which has none, something of no effect.

    Raises:
        KeyError: if the method has not computed it.
    """
    return batch.per_target[name] if batch.num_trees else like.detach()
