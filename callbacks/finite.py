"""Stop at a loss or gradient that is not finite, before it reaches the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_posttrain.callbacks.protocols import MeasuresGradient, NamesRows
from lit_posttrain.errors import PostTrainError, on_all_ranks
from lit_posttrain.types import PerResponse, TreeBatch

_SHOWN = 8


class FiniteLossGuard(Callback):
    """Stops a run whose loss or gradient is NaN or infinite, naming the optimizer step, the rows of its batch, and the
    labels that the loss reads and that are NaN.

    The optimizer does not step, and checkpoints stay as they are. Costs one synchronisation per optimizer step.
    Gradients are not judged in 16-mixed precision, where a scaler skips such steps by itself.
    """

    def __init__(self) -> None:
        self._rows: list[list[int]] = []
        self._labels: list[PerResponse | None] = []
        self._finite: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an interrupted run; refuse a module that does not measure its gradient."""
        if not isinstance(pl_module, MeasuresGradient):
            raise PostTrainError(
                f"FiniteLossGuard needs `gradient_norm()`, which {type(pl_module).__name__} does not have: drop it"
            )
        self._rows, self._labels, self._finite = [], [], []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the rows and labels of the micro-batch. The method refuses a batch of another kind, right after
        this."""
        trees = isinstance(batch, TreeBatch)
        self._rows.append(list(batch.example_ids) if trees else [])
        self._labels.append(batch.per_response if trees else None)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note on the loss's device whether it is finite."""
        self._finite.append(torch.isfinite(loss.detach()).all())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the losses and the gradient of the step, with one synchronisation.

        Raises:
            PostTrainError: if a loss or the gradient is not finite, on all processes.
        """
        rows, labels, losses = self._rows, self._labels, self._finite
        self._rows, self._labels, self._finite = [], [], []
        if not losses:
            return
        assert isinstance(pl_module, MeasuresGradient)
        scaled = trainer.precision == "16-mixed"
        finite = torch.ones_like(losses[0]) if scaled else torch.isfinite(pl_module.gradient_norm())
        *verdicts, gradient = torch.stack([*losses, finite]).tolist()
        strategy = trainer.strategy
        if not strategy.reduce_boolean_decision(not (all(verdicts) and gradient), all=False):
            return
        # a bad loss anywhere is a bad gradient everywhere, so losses come first
        loss_somewhere = strategy.reduce_boolean_decision(not all(verdicts), all=False)
        step = trainer.global_step + 1
        if loss_somewhere and all(verdicts):
            told = f"stopped at optimizer step {step}: the loss of another process is not finite"
            raise on_all_ranks(PostTrainError(told))
        what = "loss" if loss_somewhere else "gradient"
        bad = rows[verdicts.index(False)] if loss_somewhere else [row for members in rows for row in members]
        nan = _nan_labels(labels[verdicts.index(False)]) if loss_somewhere else ""
        told = (
            f"the {what} of optimizer step {step} is not finite, from {_named(trainer, bad)}: "
            f"{nan or 'look at these rows, or lower the learning rate'}; no weight was changed by this step"
        )
        raise on_all_ranks(PostTrainError(told))


def _named(trainer: Trainer, rows: list[int]) -> str:
    source = getattr(trainer, "datamodule", None)
    shown = rows[:_SHOWN]
    names = source.row_sources(shown) if isinstance(source, NamesRows) else [f"row {row}" for row in shown]
    more = f" and {len(rows) - len(shown)} more" if len(rows) > len(shown) else ""
    return ", ".join(names) + more


def _nan_labels(labels: PerResponse | None) -> str:
    """What to do about the labels that the loss has read and that are NaN; empty if none is."""
    if labels is None:
        return ""
    missing = {name: int(labels.optional(name).isnan().sum()) for name in sorted(labels.read)}
    told = [f"`{name}` is NaN for {count} of {labels.absent.numel()}" for name, count in missing.items() if count]
    if not told:
        return ""
    return (
        f"of the labels that the loss reads, {' and '.join(told)} responses (labels there: "
        f"{', '.join(labels.columns) or 'none'}); write it for each, or leave out the responses without it"
    )
