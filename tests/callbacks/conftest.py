"""A tiny training run in memory: a two-layer Llama, random trees, and a record of what it saw and logged."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lit_posttrain.callbacks import AtomicCheckpointIO
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.data.store.loader import EvalLoader, StepLoader
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.methods.sft import SFT
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.types import Response, RowLayout, Tree, TreeBatch

ACCUMULATE = 3


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


@dataclass
class Fitted:
    """A finished run. weights: copies. perf: every logged metric, by name."""

    trainer: pl.Trainer
    module: SFT
    batches: list[tuple[int, int, int, tuple[int, ...]]]
    rows: list[tuple[int | None, dict[str, float]]]
    weights: list[Tensor] = field(default_factory=list)

    def same_weights(self, other: Fitted) -> bool:
        """Bitwise."""
        return all(torch.equal(a, b) for a, b in zip(self.weights, other.weights, strict=True))


Fit = Callable[..., Fitted]


@pytest.fixture(scope="session")
def fit_in(tiny_model: Path) -> Fit:
    """`fit_in(folder, callbacks, ...)`: train 20 rows, 4 a step (5 optimizer steps an epoch), 3 micro-batches each."""

    def fit_in(
        folder: Path,
        callbacks: Sequence[pl.Callback] = (),
        *,
        resume: Path | None = None,
        validate: bool = False,
        rows: int = 20,
        schedule: Any = "linear",
        module: Callable[..., SFT] = SFT,
        datamodule: Callable[[StepLoader, EvalLoader], pl.LightningDataModule] | None = None,
        loggers: Sequence[Logger] = (),
        layout: RowLayout | None = None,
        **options: Any,
    ) -> Fitted:
        torch.manual_seed(0)
        made = module(ModelSpec(str(tiny_model)), Optim(lr=1e-3, weight_decay=0.01, schedule=schedule))
        recorder, log = Recorder(), RowLog()
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "accumulate_grad_batches": ACCUMULATE,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 1.0,
        }
        if any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks):
            del defaults["enable_checkpointing"]
        trainer = pl.Trainer(
            default_root_dir=str(folder),
            callbacks=[recorder, *callbacks],
            logger=[log, *loggers],
            plugins=[AtomicCheckpointIO(), *options.pop("plugins", [])],
            **{**defaults, **options},
        )
        accumulate = options.get("accumulate_grad_batches", ACCUMULATE)
        train = StepLoader(random_trees(rows), batch_size=4, accumulate=accumulate, layout=layout)
        val = EvalLoader(random_trees(5, seed=1), batch_size=4)
        if datamodule is not None:
            trainer.fit(made, datamodule=datamodule(train, val), ckpt_path=resume)
        else:
            trainer.fit(made, train, val if validate else None, ckpt_path=resume)
        weights = [p.detach().clone() for p in made.parameters()]
        return Fitted(trainer, made, recorder.batches, log.rows, weights)

    return fit_in


@pytest.fixture(autouse=True)
def _one_thread(_same_torch_state: None) -> None:
    """Tiny matrices are slower on two threads than on one."""
    torch.set_num_threads(1)
