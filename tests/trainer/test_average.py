"""An average of the weights (EMAWeightAveraging) of every method, in scripts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from cases import METHODS, build
from helpers.runs import quiet_trainer
from helpers.trainer import weights
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.core.trainer_checks import _check_average
from lit_posttrain.errors import PostTrainError


class Weights(pl.Callback):
    """What is trained, after every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        self.seen.append({name: p.detach().clone() for name, p in trained.items()})


@pytest.mark.parametrize("method", METHODS)
def test_an_average_leaves_the_training_as_it_is(method: str, tiny_model: Path, tmp_path: Path) -> None:
    """References, critics and rollouts see the weights at hand; last.ckpt has the average."""
    runs: dict[str, list[dict[str, torch.Tensor]]] = {}
    for name, more in (("plain", []), ("average", [EMAWeightAveraging(decay=0.5)])):
        pl.seed_everything(0, verbose=False)
        kept = Weights()
        trainer = quiet_trainer(
            kept, *more, LastCheckpoint(1), max_steps=3, max_epochs=3, default_root_dir=tmp_path / name
        )
        trainer.fit(build(method, tiny_model), datamodule=METHODS[method].data(tmp_path))
        runs[name] = kept.seen
    saved, steps = weights(tmp_path / "average/last.ckpt"), runs["plain"]
    for name in steps[0]:
        assert all(torch.equal(one[name], other[name]) for one, other in zip(steps, runs["average"], strict=True))
        first, second, third = (step[name].double() for step in steps)
        wanted = 0.5 * (0.5 * first + 0.5 * second) + 0.5 * third
        torch.testing.assert_close(saved[name].double(), wanted, rtol=0, atol=1e-6)


class OfEpochs(EMAWeightAveraging):
    """Takes the weights in at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__(decay=0.5)
        self.epoch = epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None or epoch_idx == self.epoch


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_average_that_takes_in_the_end_of_an_epoch_is_refused(epoch: int, tiny_model: Path, tmp_path: Path) -> None:
    """At the start where it is the first one, else then. A run that goes on from its last step would lack it."""
    trainer = quiet_trainer(OfEpochs(epoch), LastCheckpoint(100), max_epochs=3, default_root_dir=tmp_path)
    with pytest.raises(PostTrainError, match="OfEpochs takes the weights into the average at the end of an epoch"):
        trainer.fit(build("sft", tiny_model), datamodule=METHODS["sft"].data(tmp_path))
    assert (tmp_path / "last.ckpt").exists() == (epoch == 1)
    assert trainer.current_epoch == epoch


def test_an_average_that_inherits_when_it_is_made_is_refused_at_once() -> None:
    class Own(EMAWeightAveraging):
        pass

    trainer = SimpleNamespace(lightning_module=SimpleNamespace(strict_loading=True), strategy=None)
    with pytest.raises(PostTrainError, match="average over steps instead"):
        _check_average(cast(pl.Trainer, trainer), Own(update_starting_at_epoch=1))


def test_an_average_of_ones_own_is_not_asked_of_epochs_that_never_come() -> None:
    class Own(WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return [True][epoch_idx or 0]

    trainer = SimpleNamespace(lightning_module=SimpleNamespace(strict_loading=True), strategy=None)
    _check_average(cast(pl.Trainer, trainer), Own())
