"""What the spine does around training: where a loader begins, what a checkpoint restores when."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from cases import GIVEN_ROWS, METHODS, build
from helpers.runs import quiet_trainer

from lit_posttrain import (
    DPO,
    KTO,
    ORPO,
    ModelSpec,
    PostTrainError,
    PostTrainingModule,
    RewardModel,
    SimPO,
)
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.core.resume import saved_options
from lit_posttrain.data.store.loader import EvalLoader, StepLoader
from lit_posttrain.data.store.memory import MemoryTrees

ROWS, BATCH, ACCUMULATE = 24, 8, 2


class Rows(pl.LightningDataModule):
    """Some rows of a method's case, and which of them training saw, by epoch."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.store = MemoryTrees(METHODS[method].trees()[:ROWS])

    def train_dataloader(self) -> StepLoader:
        trainer: Any = self.trainer
        limit = trainer.limit_train_batches
        return StepLoader(self.store, batch_size=BATCH, accumulate=trainer.accumulate_grad_batches, limit=limit)

    def val_dataloader(self) -> EvalLoader:
        return EvalLoader(self.store, batch_size=BATCH)


class Seen(pl.Callback):
    """The rows of every micro-batch by epoch."""

    def __init__(self) -> None:
        self.rows: dict[int, list[list[int]]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rows.setdefault(trainer.current_epoch, []).append(batch.example_ids)


def trainer(folder: Path, seen: Seen, **options: Any) -> pl.Trainer:
    return quiet_trainer(
        seen,
        LastCheckpoint(every_n_steps=1),
        default_root_dir=folder,
        num_sanity_val_steps=0,
        accumulate_grad_batches=ACCUMULATE,
        **options,
    )


@pytest.mark.parametrize("limit", [4, 0.7])
@pytest.mark.parametrize("method", GIVEN_ROWS)
def test_limited_epochs_each_begin_anew(method: str, limit: int | float, tiny_model: Path, tmp_path: Path) -> None:
    seen = Seen()
    fit = trainer(tmp_path, seen, limit_train_batches=limit, max_epochs=3)
    fit.fit(build(method, tiny_model), datamodule=Rows(method))
    assert {epoch: len(batches) for epoch, batches in seen.rows.items()} == {0: 4, 1: 4, 2: 4}
    assert fit.global_step == 6
    order = np.random.default_rng((0, 2)).permutation(ROWS)[: 2 * BATCH]
    assert sorted(chain(*seen.rows[2])) == sorted(order)
    # stopped after the first epoch and resumed, the second is the same
    again, first = Seen(), Seen()
    trainer(tmp_path / "two", first, limit_train_batches=limit, max_epochs=1).fit(
        build(method, tiny_model), datamodule=Rows(method)
    )
    trainer(tmp_path / "two", again, limit_train_batches=limit, max_epochs=3).fit(
        build(method, tiny_model), datamodule=Rows(method), ckpt_path=tmp_path / "two/last.ckpt"
    )
    assert again.rows == {epoch: seen.rows[epoch] for epoch in (1, 2)}


@pytest.mark.parametrize("method", GIVEN_ROWS)
def test_validating_a_checkpoint_does_not_move_a_later_training(method: str, tiny_model: Path, tmp_path: Path) -> None:
    trainer(tmp_path, Seen(), max_steps=1).fit(build(method, tiny_model), datamodule=Rows(method))
    module, seen = build(method, tiny_model), Seen()
    trainer(tmp_path, Seen()).validate(module, datamodule=Rows(method), ckpt_path=tmp_path / "last.ckpt")
    trainer(tmp_path / "fresh", seen, max_epochs=1).fit(module, datamodule=Rows(method))
    assert sorted(chain(*seen.rows[0])) == list(range(ROWS))
    assert module.num_tokens == Rows(method).store.lengths.sum()


def test_fused_optimizers_are_refused_in_16_mixed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pl.Trainer, "precision", "16-mixed")  # which a CPU does not have
    module = build("sft", tiny_model)
    module.optim = replace(module.optim, options={"fused": True})
    with pytest.raises(PostTrainError, match="leave `fused` out"):
        trainer(tmp_path, Seen(), max_steps=1).fit(module, datamodule=Rows("sft"))


@pytest.mark.parametrize("method", GIVEN_ROWS)
def test_resuming_with_other_options_is_refused(method: str, tiny_model: Path, tmp_path: Path) -> None:
    trainer(tmp_path, Seen(), max_steps=1).fit(build(method, tiny_model), datamodule=Rows(method))
    options = saved_options(build(method, tiny_model).method_options)
    assert "***" not in str(options)
    common = {*inspect.signature(PostTrainingModule).parameters, "reference"}
    assert {name for name in options if "." not in name} == set(
        inspect.signature(type(build(method, tiny_model))).parameters
    ) - common
    for name in options:
        if "." in name:
            continue
        other = build(method, tiny_model)
        setattr(other, name, "another")
        with pytest.raises(PostTrainError, match=f"--model.{name} .* and this run has another"):
            trainer(tmp_path, Seen(), max_steps=2).fit(other, datamodule=Rows(method), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("method", METHODS)
def test_every_argument_of_a_method_is_compared_by_a_resume(method: str, tiny_model: Path) -> None:
    module = build(method, tiny_model)
    compared = {name.partition(".")[0] for name in saved_options(module.method_options)}
    # the optimizer is compared by itself, a teacher by its weights; and a reference's source may change
    free = {"optim", "reference", "teacher"}
    assert {*inspect.signature(type(module)).parameters} - free <= compared


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize(("option", "value"), [("dropout", "the other"), ("eos", ["<|im_start|>"])])
def test_resuming_with_another_objective_is_refused(
    option: str, value: Any, method: str, tiny_model: Path, tmp_path: Path
) -> None:
    module = build(method, tiny_model)
    trainer(tmp_path, Seen(), max_steps=1).fit(module, datamodule=Rows(method))
    other = build(method, tiny_model, **{option: not module.dropout if option == "dropout" else value})
    with pytest.raises(PostTrainError, match=rf"trained with --model.policy.{option} .* and this run has"):
        trainer(tmp_path, Seen(), max_steps=2).fit(other, datamodule=Rows(method), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("method", "option"),
    [
        (DPO, "beta"),
        (DPO, "rpo_alpha"),
        (DPO, "sft_weight"),
        (KTO, "beta"),
        (KTO, "desirable_weight"),
        (KTO, "undesirable_weight"),
        (SimPO, "beta"),
        (SimPO, "gamma"),
        (ORPO, "beta"),
        (RewardModel, "center_rewards_coefficient"),
    ],
)
def test_numbers_that_cannot_be_are_refused(method: Any, option: str, value: float, tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match=f"--model.{option} is {value}|--model.{option} {value}"):
        method(ModelSpec(str(tiny_model)), **{option: value})


def test_two_weights_of_nothing_are_refused(tiny_model: Path) -> None:
    with pytest.raises(PostTrainError, match="one of them above"):
        KTO(ModelSpec(str(tiny_model)), desirable_weight=0.0, undesirable_weight=0.0)
