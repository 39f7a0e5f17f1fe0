"""The loss that PPO and the GRPO family share: a clipped surrogate, a KL term and an entropy bonus."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_posttrain.core.component import KLWeight
from lit_posttrain.core.resume import flat_options
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.on_policy.module import OnPolicyModule
from lit_posttrain.on_policy.rollouts import Stats
from lit_posttrain.ops import policy_gradient as pg
from lit_posttrain.ops.kl import k1, k3
from lit_posttrain.ops.logprobs import TokenLogprobs
from lit_posttrain.ops.policy_gradient import Aggregation
from lit_posttrain.types import Tree, TreeBatch

ImportanceSampling = Literal["none", "tis", "mask"]


@dataclass(frozen=True)
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
        if not (self.low >= 0 and self.high > 0):
            raise PostTrainError("--model.clip.low must be at least 0 and --model.clip.high above 0 (0.2 is usual)")
        if self.dual is not None and not self.dual > 1:
            raise PostTrainError(f"--model.clip.dual is {self.dual}; it must be above 1 (3 is usual)")


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """The objective on sampled tokens. ratio: of tokens, or of whole sequences (GSPO). objective: the clipped
    surrogate of PPO, or log-probs weighted by a bounded ratio (CISPO). aggregation: how tokens are averaged.
    importance_sampling: weight of a token for an engine that is not quite the policy. entropy: weight of a bonus."""

    clip: Clip
    ratio: Literal["token", "sequence"] = "token"
    objective: Literal["clip", "cispo"] = "clip"
    aggregation: Aggregation = "token"
    importance_sampling: ImportanceSampling = "none"
    entropy: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.entropy < math.inf:
            raise PostTrainError(f"--model.entropy is {self.entropy}; it must be at least 0")
        clip = self.clip
        if self.objective == "cispo" and (self.ratio == "sequence" or clip.high < 1 or clip.dual is not None):
            raise PostTrainError(
                "--model.objective cispo weighs tokens by a ratio of at most clip.high: take --model.ratio token, "
                "--model.clip.high 5 and no clip.dual"
            )

    @property
    def options(self) -> dict[str, Any]:
        """All of it by dotted name, for a resume to compare."""
        return {name: value for part in vars(self).items() for name, value in flat_options(*part).items()}


class PolicyGradient:
    """The terms of a policy gradient for a module.

    kl_in_loss: True if the KL from the reference is a term of the loss, and not taken from the reward.
    """

    def __init__(self, module: OnPolicyModule, surrogate: Surrogate, kl: KLWeight, kl_in_loss: bool = True) -> None:
        self.module, self.surrogate, self.kl = module, surrogate, kl
        self.kl_in_loss = kl_in_loss
        self._apart: list[Tensor] = []  # of the step's micro-batches: summed k1 from the reference, and responses

    def terms(self, batch: TreeBatch, out: TokenLogprobs) -> dict[str, Term]:
        """The policy term, and those of the KL and of the entropy where asked for."""
        module, how = self.module, self.surrogate
        logprob, count = out.logprobs, float(len(batch.target_response))
        assert out.entropy is not None
        keeps_old = "old_logprobs" in module.wanted_columns
        # where the policy is still the one that sampled its own log-probs are the old ones
        old = column(batch, "old_logprobs", logprob) if keeps_old else logprob.detach()
        engine = column(batch, "rollout_logprobs", logprob)
        loss = self._policy_loss(logprob, old, column(batch, "advantage", logprob), batch)
        if how.importance_sampling != "none":
            loss = loss * pg.engine_weight(old, engine, how.importance_sampling)
        unit = "tokens" if how.aggregation == "token" else "responses"
        terms = {"policy": Term(self._aggregated(loss, batch), unit)}
        if self.kl_in_loss and self.kl.coefficient > 0:
            distance = pg.kl_loss(logprob, column(batch, "ref_logprobs", logprob), old)
            terms["kl"] = Term(self._aggregated(distance, batch), unit, self.kl.coefficient)
        if how.entropy:
            terms["entropy"] = Term(-out.entropy.sum(), "tokens", how.entropy)
        if self.kl.used:
            module.track("kl_coefficient", torch.tensor(self.kl.coefficient), 1.0)
        module.track("entropy", out.entropy.sum(), count)
        module.track("rollout/engine_logp_diff", (old - engine).abs().sum(), count)
        module.track("approx_kl", k3(old - logprob.detach()).sum(), count)
        if self.kl.used and not keeps_old:  # else the rollout has measured it
            self._track_kl(logprob.detach() - column(batch, "ref_logprobs", logprob), batch)
        return terms

    def measured_kl(self, trees: Sequence[Tree]) -> Stats:
        """KL of the policy from the reference on the responses just sampled, where both log-probs are known: kl (k3,
        nats per token) and kl/response (k1, nats per response)."""
        if not {"old_logprobs", "ref_logprobs"} <= self.module.wanted_columns:
            return {}  # a loss at the policy that sampled gives them by the way
        apart = torch.cat(
            [torch.from_numpy(t.per_target["old_logprobs"] - t.per_target["ref_logprobs"]).double() for t in trees]
        )
        responses = float(sum(bool(response.loss_mask.any()) for tree in trees for response in tree.responses))
        total = float(k1(apart).sum())
        self.kl.measure(total, responses)
        return {"kl": (float(k3(apart).sum()), float(len(apart))), "kl/response": (total, responses)}

    def end_step(self) -> None:
        """Keep the step's KL where no pass before it has measured one. Collective."""
        if self._apart:
            self.kl.measure(*self.module.over_ranks(torch.stack(self._apart).sum(0)).tolist())
            self._apart = []

    def _track_kl(self, apart: Tensor, batch: TreeBatch) -> None:
        self.module.track("kl", k3(apart).sum(), float(len(apart)))
        responses = (batch.target_response.bincount() > 0).sum()  # that have trained tokens
        self.module.track("kl/response", k1(apart).sum(), responses)
        self._apart.append(torch.stack([k1(apart).sum(), responses.to(apart.dtype)]))

    def _aggregated(self, loss_N: Tensor, batch: TreeBatch) -> Tensor:
        """The sum that the step's denominator divides."""
        longest, kind = self.module.rollout.max_new_tokens, self.surrogate.aggregation
        return pg.aggregated(loss_N, batch.target_response, batch.num_responses, kind, longest)

    def _policy_loss(self, logprob: Tensor, old: Tensor, advantage: Tensor, batch: TreeBatch) -> Tensor:
        track, clip = self.module.track, self.surrogate.clip
        if self.surrogate.ratio == "sequence":
            ratio = pg.sequence_ratio(logprob, old, batch.target_response, batch.num_responses)
        else:
            ratio = pg.token_ratio(logprob, old)
        count = float(len(ratio))
        if self.surrogate.objective == "cispo":
            track("clip_ratio/high", ((ratio > clip.high) & (advantage > 0)).sum(), count)
            return pg.cispo(advantage, ratio, logprob, clip.high)
        low, high = pg.clip_shares(advantage, ratio, clip.low, clip.high)
        track("clip_ratio/low", low.sum(), count)
        track("clip_ratio/high", high.sum(), count)
        return pg.clipped(advantage, ratio, clip.low, clip.high, clip.dual)


def column(batch: TreeBatch, name: str, like: Tensor) -> Tensor:
    """(N,) a column of the batch's targets; of a micro-batch without trees, which has none, something of no effect.

    Raises:
        KeyError: if the method has not computed it.
    """
    return batch.per_target[name] if batch.num_trees else like.detach()
