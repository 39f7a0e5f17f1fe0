"""Random trees to train on, and a record of what a run saw and logged."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import Logger

from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.types import Response, Tree, TreeBatch


def random_trees(count: int, seed: int = 0) -> MemoryTrees:
    """Random trees of one response."""
    draw = np.random.default_rng(seed)
    trees = []
    for _ in range(count):
        size = int(draw.integers(3, 12))
        answer = Response(draw.integers(3, 400, size).astype(np.int32), np.ones(size, bool))
        prompt = draw.integers(3, 400, draw.integers(3, 9)).astype(np.int32)
        trees.append(Tree(prompt, [answer]))
    return MemoryTrees(trees, f"{count}-{seed}")


class Recorder(pl.Callback):
    """(global_step, epoch, batch_idx, rows) of every micro-batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int, tuple[int, ...]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: TreeBatch, batch_idx: int) -> None:
        self.batches.append((trainer.global_step, trainer.current_epoch, batch_idx, tuple(batch.example_ids)))


class RowLog(Logger):
    """(step, metrics) of every call, without speed and memory, which differ between runs."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        kept = {k: v for k, v in metrics.items() if not k.startswith("perf/") and k != "epoch"}
        if kept:
            self.rows.append((step, kept))
