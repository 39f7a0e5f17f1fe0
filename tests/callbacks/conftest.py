"""A tiny training run in memory: a two-layer Llama, random trees, and a record of what it saw and logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.recorded import Recorder, RowLog, random_trees
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lit_posttrain.callbacks import AtomicCheckpointIO
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.data.store.loader import EvalLoader, StepLoader
from lit_posttrain.methods.sft import SFT
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.types import RowLayout

ACCUMULATE = 3


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
