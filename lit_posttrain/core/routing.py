"""The load-balancing loss of a mixture of experts, as a term of any method's loss.

transformers multiplies two means over the tokens of a micro-batch, so that its gradient depends on how a step is cut.
Here the shares f_e are those of the optimizer step before, over all its micro-batches and ranks: the term is a sum over
tokens like any other. At the first step nothing is known yet: the shares are even, and the term has no gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.policy import WrappedModel
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops.routing import load_balancing

log = logging.getLogger(__name__)


class Balance:
    """The term of a run, and what it keeps from step to step.

    weight: of the term in the loss; 0 is no such term. load: (E,) the shares of the last step's tokens that went to the
    experts; None before the first.
    """

    def __init__(self, spec: ModelSpec, config: Any) -> None:
        """
        Raises:
            PostTrainError: for a weight on a model without routers that transformers could balance.
        """
        config = config.get_text_config(decoder=True)
        self.kind, self.usual = config.model_type, getattr(config, "router_aux_loss_coef", None)
        self.top_k: int | None = getattr(config, "num_experts_per_tok", None)
        asked = self.usual if getattr(config, "output_router_logits", False) else None
        self.weight = float((asked if spec.router_aux_loss is None else spec.router_aux_loss) or 0.0)
        self.load: Tensor | None = None
        self._taken: Tensor | None = None  # in the step at hand
        self.unasked = self.usual is not None and spec.router_aux_loss is None and not self.weight
        if self.weight and (self.usual is None or self.top_k is None):
            raise PostTrainError(
                f"--model.policy.router_aux_loss {self.weight:g}: a {self.kind} model has no routers whose loss "
                "transformers knows; leave it out"
            )

    def tell(self) -> None:
        """Say that there is such a loss and that it is off."""
        if self.unasked:
            log.warning(
                "%s: the loss that balances its experts is off, as output_router_logits is false in its config; "
                "--model.policy.router_aux_loss %g adds it, 0 leaves it off without this line",
                self.kind,
                self.usual,
            )

    def total(self, policy: WrappedModel) -> Tensor | None:
        """The sum of the term over the targets of the policy's last forward pass; None after one without a gradient."""
        if policy.routing is None or self.top_k is None:
            return None
        taken, probability = policy.routing
        policy.routing = None
        self._taken = taken if self._taken is None else self._taken + taken
        even = taken.new_full(taken.shape, self.top_k / len(taken))
        return load_balancing(even if self.load is None else self.load.to(taken), probability)

    def end_step(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Take the shares of the step that ends, over all its micro-batches and ranks. over_ranks: sums a tensor over
        all ranks."""
        if self._taken is not None and self.top_k is not None:
            taken = over_ranks(self._taken)
            self.load, self._taken = self.top_k * taken / taken.sum().clamp(min=1), None
