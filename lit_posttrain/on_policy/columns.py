"""Per-token model outputs of a rollout (old and reference log-probs, values), computed once, sharded over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from lit_posttrain.data.store.loader import StepCutter
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.packing import collate, split_step
from lit_posttrain.distributed import all_gather_object
from lit_posttrain.on_policy.experience import num_targets
from lit_posttrain.types import Tree, TreeBatch


class GivesColumns(Protocol):
    """A module with such outputs."""

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def columns(self, batch: TreeBatch, wanted: set[str]) -> dict[str, Tensor]:
        """The requested per-token outputs, each (N,), under no_grad."""
        ...


def attach_columns(
    trees: Sequence[Tree], wanted: set[str], module: GivesColumns, cutter: StepCutter, steps: int
) -> None:
    """Put `wanted` into the `per_target` of the trees, alike on all ranks. The ranks share the work, each in `steps`
    times the micro-batches of an optimizer step. Collective."""
    if not wanted:
        return
    ends = np.cumsum([0, *(num_targets(tree) for tree in trees)]).tolist()
    marked = [
        replace(tree, per_target={"place": np.arange(begin, end)})
        for tree, begin, end in zip(trees, ends, ends[1:], strict=False)
    ]
    found: dict[str, Tensor] = {}
    count = steps * cutter.accumulate
    parts = split_step(MemoryTrees(trees).lengths, count * cutter.world)
    for number in range(count):
        chosen = parts[number * cutter.world + cutter.rank]
        batch = collate([marked[i] for i in chosen], cutter.layout, {}, chosen).to(module.device)
        with module.trainer.precision_plugin.forward_context():
            values = {name: column.cpu() for name, column in module.columns(batch, wanted).items()}
        places = batch.per_target["place"].cpu() if batch.per_target else torch.zeros(0, dtype=torch.int64)
        for where, what in all_gather_object((places, values), module.trainer):
            for name, numbers in what.items():
                found.setdefault(name, numbers.new_zeros(ends[-1]))[where] = numbers
    for name, numbers in found.items():
        for tree, begin, end in zip(trees, ends, ends[1:], strict=False):
            tree.per_target[name] = numbers[begin:end].numpy()


def joined(trees: Sequence[Tree], name: str) -> Tensor:
    """(N,) float64, a column of all trees."""
    return torch.from_numpy(np.concatenate([np.zeros(0), *(tree.per_target[name] for tree in trees)]))


def attach(trees: Sequence[Tree], name: str, values_N: Tensor) -> None:
    """Write a number for every trained token of all trees into their columns, as float32."""
    sizes = [num_targets(tree) for tree in trees]
    for tree, own in zip(trees, torch.split(values_N, sizes), strict=True):
        tree.per_target[name] = own.float().numpy()
