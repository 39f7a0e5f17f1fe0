"""The options of the optimizer: what cannot be is refused in one line, before training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, conversation_files
from helpers.runs import quiet_trainer
from torch.optim import SGD

from lit_posttrain import PostTrainError
from lit_posttrain.core.optimisation import Optim


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"options": {"lr": 1e-3}}, "--model.optim.options has lr: give it as --model.optim.lr"),
        ({"options": {"weight_decay": 0.1}}, "--model.optim.options has weight_decay: give it as"),
        ({"options": {"beta": 0.9}}, "--model.optim.options: AdamW has no argument beta; did you mean betas?"),
        ({"options": {"params": []}}, "--model.optim.options: AdamW has no argument params"),
        ({"optimizer": "SDG"}, "--model.optim.optimizer SDG: there is no such optimizer; did you mean SGD?"),
        ({"optimizer": "torch.nn.Linear"}, "--model.optim.optimizer torch.nn.Linear: there is no such optimizer"),
        (
            {"optimizer": "no_such_module.Lion"},
            "--model.optim.optimizer no_such_module.Lion: no module `no_such_module`",
        ),
        (
            {"optimizer": "torch.optim.SGD", "options": {"moment": 0.9}},
            "--model.optim.options: SGD has no argument moment; did you mean momentum?",
        ),
        ({"lr": -1.0}, "--model.optim.lr is -1.0"),
        ({"lr": math.nan}, "--model.optim.lr is nan"),
        ({"weight_decay": math.inf}, "--model.optim.weight_decay is inf"),
        ({"warmup_ratio": 1.5}, "--model.optim.warmup_ratio is 1.5; it is a share of all steps"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PostTrainError) as refused:
        Optim(**options)
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)


def test_what_the_class_itself_refuses_is_one_line() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(PostTrainError, match=r"^--model\.optim SGD: Invalid momentum value: -1$"):
        Optim(optimizer="SGD", options={"momentum": -1}).build([weight])


def test_a_class_by_name_import_path_or_itself() -> None:
    assert {Optim(optimizer=given).kind for given in ("SGD", "torch.optim.SGD", SGD)} == {SGD}


def test_options_reach_the_optimizer(tiny_model: Path, tmp_path: Path) -> None:
    module = build("sft", tiny_model)
    module.optim = Optim(lr=0.3, weight_decay=0.1, optimizer="SGD", options={"momentum": 0.9, "nesterov": True})
    trainer = quiet_trainer(max_steps=1, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=conversation_files(tmp_path))
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is SGD
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    for group in (matrices, vectors):
        assert (group["initial_lr"], group["momentum"], group["nesterov"]) == (0.3, 0.9, True)
    assert {p.dim() for p in matrices["params"]} == {2}
    assert {p.dim() for p in vectors["params"]} == {1}
