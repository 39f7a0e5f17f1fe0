"""Sums that are reduced over ranks once per log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_posttrain.ops.precision import sum_dtype

Sums = dict[str, tuple[float, float]]


class WeightedMeans(Metric):
    """Named pairs of sums: `update(name, total, count)` many times, `compute()` gives (total, count) by name.

    All names travel in one tensor, so a log costs one reduction however many metrics there are. Every rank must add
    the same names in the same order. Nothing is moved to the host before `compute`.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.add_state("sums", torch.zeros(0, 2, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        """Follow the module to its device, but not to its type: in bfloat16 a count stops growing at 256."""

        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            return tensor.to(device, sum_dtype(device) if tensor.is_floating_point() else tensor.dtype)

        super()._apply(move, exclude_state)
        return self

    def update(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add to a pair of sums; tensors are detached."""
        if name not in self.names:
            self.names.append(name)
            self.sums = torch.cat([self.sums, self.sums.new_zeros(1, 2)])
        row = self.sums[self.names.index(name)]
        row[0] += total.detach().to(row.dtype)
        row[1] += count.detach().to(row.dtype) if isinstance(count, Tensor) else count

    def compute(self) -> Sums:
        """The sums over all ranks since the last reset."""
        return {name: (total, count) for name, (total, count) in zip(self.names, self.sums.tolist(), strict=True)}

    def reset(self) -> None:
        """Forget sums and names."""
        super().reset()
        self.names = []

    def copied(self) -> WeightedMeans:
        """The sums as they are now."""
        copy = WeightedMeans()
        copy.names, copy.sums, copy._update_count = list(self.names), self.sums.clone(), self._update_count
        return copy

    def dump(self) -> dict[str, object]:
        """Names and sums over all ranks as plain values, for a checkpoint; the sums of this rank stay."""
        sums = self.compute() if self.names else {}
        self._computed = None
        return {"names": list(sums), "sums": torch.tensor(list(sums.values()), dtype=torch.float64).reshape(-1, 2)}

    def restore(self, state: Mapping[str, object], first_rank: bool) -> None:
        """Take up `dump`'s sums: on the first rank alone, since they were summed over all."""
        names, sums = state["names"], state["sums"]
        assert isinstance(names, list)
        assert isinstance(sums, Tensor)
        self.names = list(names)
        self.sums = (sums if first_rank else torch.zeros_like(sums)).to(self.sums.device)
        self._update_count = 1


def weighted_means(sums: Sums) -> dict[str, float]:
    """total / count by name. `loss/...` terms are added up as `loss`; a term that is alone is not shown twice."""
    values = {name: total / count for name, (total, count) in sums.items() if count}
    terms = [name for name in values if name.startswith("loss/")]
    if terms:
        values["loss"] = sum(values[name] for name in terms)
    if len(terms) == 1:
        del values[terms[0]]
    return values
