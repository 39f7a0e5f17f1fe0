"""Parts of a method beside the model that it trains: a reference, a teacher, the weight of a KL, a collector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import TreeBatch


class Component:
    """A part of a method with models or state of its own. The module calls these methods from its hooks, and saves and
    restores `state` under the name that the part was added with."""

    def configure_model(self) -> None:
        """Build models. Called at the end of the module's `configure_model`."""

    def on_fit_start(self) -> None:
        """Prepare for training. Called once the data is known and has been checked."""

    def snapshot(self) -> Any:
        """A cheap copy of the state that changes within an optimizer step. A checkpoint holds the one taken at the
        end of the last step."""

    def state(self, snapshot: Any) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint; {} for none. snapshot: the one of the step that is saved."""
        return {}

    def load_state(self, state: Mapping[str, Any], fitting: bool) -> None:
        """Restore `state`. fitting: True if training goes on, False if the weights are only used."""

    def columns(self, batch: TreeBatch, wanted: set[str], temperature: float) -> dict[str, Tensor]:
        """Its outputs per target among the `wanted`, each (N,), without a graph; temperature: of sampling."""
        return {}

    @property
    def frozen_weights(self) -> dict[str, list[Tensor]]:
        """The parameters of frozen models in memory, by what they are."""
        return {}

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that its models take; None for any."""
        return None


class KLWeight(Component):
    """The weight of the KL from the reference in a loss or a reward, which `KLControl` may change as training goes on.

    coefficient: the weight. used: True if the method has a KL at all.
    """

    def __init__(self, coefficient: float) -> None:
        """
        Raises:
            PostTrainError: for a weight that is negative or no number.
        """
        if not 0 <= coefficient < math.inf:
            raise PostTrainError(f"--model.beta is {coefficient}; it must be 0 (no reference) or more")
        self.coefficient, self.used = coefficient, coefficient > 0
        self._measured: tuple[float, float] | None = None

    def measure(self, total: float, responses: float) -> None:
        """Note the KL (k1, nats) summed over so many responses of all ranks; none are no measurement."""
        self._measured = (total / responses, responses) if responses else None

    def take(self) -> tuple[float, float] | None:
        """Once a rollout: the mean KL of its responses (k1, nats a response) and their number; else None."""
        found, self._measured = self._measured, None
        return found

    def snapshot(self) -> float:
        return self.coefficient

    def state(self, snapshot: Any) -> dict[str, Any]:
        return {"coefficient": snapshot}

    def load_state(self, state: Mapping[str, Any], fitting: bool) -> None:
        if fitting:
            self.coefficient = state["coefficient"]
