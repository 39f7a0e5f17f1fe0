"""A loss or gradient that is not finite never reaches the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lit_posttrain.callbacks import FiniteLossGuard
from lit_posttrain.core.terms import Term
from lit_posttrain.errors import PostTrainError
from lit_posttrain.methods.sft import SFT
from lit_posttrain.types import TreeBatch

BAD_ROW = 7


class BadLoss(SFT):
    """The loss of one row is not finite."""

    value = float("nan")

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        terms = super().loss_terms(batch)
        if BAD_ROW in batch.example_ids and self.trainer.training:
            terms = {name: replace(term, total=term.total * self.value) for name, term in terms.items()}
        return terms


class InfiniteLoss(BadLoss):
    value = float("inf")


class ReadsLabels(SFT):
    """Its loss is NaN from a label that no response has."""

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        terms = super().loss_terms(batch)
        return {"nll": replace(terms["nll"], total=terms["nll"].total + batch.per_response["votes"].sum())}


class ReplacesLabels(BadLoss):
    """Its loss is NaN, and not from the labels that it looks for."""

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        assert batch.pairs.margin.numel() == 0
        assert batch.desirable.isnan().all()
        return super().loss_terms(batch)


class BadGradient(SFT):
    """The loss is finite, its gradient is not: the derivative of the square root at zero."""

    def loss_terms(self, batch: TreeBatch) -> dict[str, Term]:
        terms = super().loss_terms(batch)
        if self.trainer.global_step == 3:
            term = terms["nll"]
            terms["nll"] = replace(term, total=term.total + (term.total * 0).sqrt())
        return terms


class Named(pl.LightningDataModule):
    """Knows where rows came from."""

    def __init__(self, train: Any, val: Any) -> None:
        super().__init__()
        self.loader = train

    def train_dataloader(self) -> Any:
        return self.loader

    def row_sources(self, rows: list[int]) -> list[str]:
        return [f"data/train.jsonl:{row + 1}" for row in rows]


class LastWeights(pl.Callback):
    """The weights before the micro-batch that failed."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.weights = [p.detach().clone() for p in pl_module.parameters()]
        self.module, self.step = pl_module, trainer.global_step


def where_the_row_is(fit_in: Any, folder: Path) -> tuple[int, tuple[int, ...]]:
    """Optimizer step and micro-batch of the row."""
    batches = fit_in(folder, max_epochs=1).batches
    return next((step + 1, rows) for step, _, _, rows in batches if BAD_ROW in rows)


@pytest.mark.parametrize("method", [BadLoss, InfiniteLoss])
def test_bad_loss_names_step_and_rows(fit_in: Any, tmp_path: Path, method: Any) -> None:
    step, rows = where_the_row_is(fit_in, tmp_path)
    before = LastWeights()
    with pytest.raises(PostTrainError) as e:
        fit_in(tmp_path, [FiniteLossGuard(), before], module=method, max_epochs=1)
    named = ", ".join(f"row {row}" for row in rows)
    assert f"the loss of optimizer step {step} is not finite, from {named}: " in str(e.value)
    assert before.step == step - 1
    assert all(torch.equal(a, b) for a, b in zip(before.weights, before.module.parameters(), strict=True))
    assert all(w.isfinite().all() for w in before.weights)


def test_a_label_that_is_nan_is_named(fit_in: Any, tmp_path: Path) -> None:
    told = r": of the labels that the loss reads, `votes` is NaN for (\d) of \1 responses \(labels there: none\)"
    with pytest.raises(PostTrainError, match=told):
        fit_in(tmp_path, [FiniteLossGuard()], module=ReadsLabels, max_epochs=1)


def test_a_label_that_need_not_be_there_is_not_blamed(fit_in: Any, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"from row \d+.*: look at these rows, or lower the learning rate"):
        fit_in(tmp_path, [FiniteLossGuard()], module=ReplacesLabels, max_epochs=1)


def test_rows_by_file_and_line(fit_in: Any, tmp_path: Path) -> None:
    _, rows = where_the_row_is(fit_in, tmp_path)
    with pytest.raises(PostTrainError, match=", ".join(rf"data/train\.jsonl:{row + 1}" for row in rows)):
        fit_in(tmp_path, [FiniteLossGuard()], module=BadLoss, datamodule=Named, max_epochs=1)


def test_bad_gradient_names_the_step(fit_in: Any, tmp_path: Path) -> None:
    before = LastWeights()
    with pytest.raises(PostTrainError, match="the gradient of optimizer step 4 is not finite, from row"):
        fit_in(tmp_path, [FiniteLossGuard(), before], module=BadGradient, max_epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(before.weights, before.module.parameters(), strict=True))


def test_sound_run_is_left_alone(fit_in: Any, tmp_path: Path) -> None:
    guarded = fit_in(tmp_path, [FiniteLossGuard()], max_epochs=1)
    assert guarded.same_weights(fit_in(tmp_path, max_epochs=1))
