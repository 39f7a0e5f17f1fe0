"""Once the policy is too far from the one that sampled, the other steps of a rollout are skipped."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_posttrain.on_policy.module import OnPolicyModule
from lit_posttrain.on_policy.policy_gradient import column
from lit_posttrain.ops.kl import k3
from lit_posttrain.types import TreeBatch


class TargetKL:
    """Skips the rest of a rollout after a step whose mean k3 from the policy that sampled (nats a token) is above
    `limit`; None never does."""

    def __init__(self, module: OnPolicyModule, limit: float | None) -> None:
        self.module, self.limit = module, limit
        self._apart: list[Tensor] = []  # of the step's micro-batches: summed k3

    def measure(self, batch: TreeBatch, logprob_N: Tensor) -> None:
        """Add a micro-batch's KL."""
        if self.limit is None or self.module.evaluating:
            return
        kept = "old_logprobs" in self.module.wanted_columns
        old = column(batch, "old_logprobs", logprob_N) if kept else logprob_N
        self._apart.append(k3(old - logprob_N).sum())

    def end_step(self, batch: TreeBatch) -> None:
        """Skip the rest of the rollout if the step's KL is beyond the limit. Collective."""
        if self.limit is None:
            return
        apart = self.module.over_ranks(torch.stack(self._apart).sum())
        if bool(apart / max(batch.denominators["tokens"], 1.0) > self.limit):
            self.module.loader.leave()
        self._apart = []
        self.module.track("skipped_steps", torch.tensor(float(self.module.loader.idle)), 1.0)
