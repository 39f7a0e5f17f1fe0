"""Callbacks that change what a checkpoint holds at the end of an optimizer step or of an epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging

from lit_posttrain.callbacks.kl_control import KLControl
from lit_posttrain.callbacks.reference_sync import ReferenceSync
from lit_posttrain.errors import PostTrainError, on_all_ranks


def averages(trainer: Trainer) -> list[WeightAveraging]:
    """The callbacks that keep an average of the weights."""
    loosely: Any = trainer  # `callbacks` is set by a connector, unseen by type checkers
    return [callback for callback in loosely.callbacks if isinstance(callback, WeightAveraging)]


def ends_in_callbacks(trainer: Trainer) -> bool:
    """True if a callback changes what a checkpoint holds at the end of the current step (an average of the weights, the
    reference, the weight of the KL), and so may not have run when the step is interrupted."""
    step = trainer.global_step
    loosely: Any = trainer
    return any(
        (isinstance(callback, WeightAveraging) and callback.should_update(step_idx=step - 1))
        or (isinstance(callback, ReferenceSync) and step % callback.every_n_steps == 0)
        or (isinstance(callback, KLControl) and callback.coefficient != "fixed")
        for callback in loosely.callbacks
    )


def require_averages_of_steps(trainer: Trainer) -> None:
    """Refuse an average that is updated at the end of the current epoch: last.ckpt is saved before that, and a run that
    resumes from it would miss the update.

    Raises:
        PostTrainError: naming the callback, on all processes at once.
    """
    for callback in averages(trainer):
        if callback.should_update(epoch_idx=trainer.current_epoch):
            told = (
                f"{type(callback).__name__} takes the weights into the average at the end of an epoch, after last.ckpt "
                "is saved; average after steps instead (should_update is true for a step_idx, never for an epoch_idx)"
            )
            raise on_all_ranks(PostTrainError(told))
