"""What a checkpoint holds beside weights and optimizer state, remembered at the end of every optimizer step.

Between two optimizer steps the weights stand still while everything else moves on: counters, the place in the data, the
state of callbacks. No run could resume exactly from a checkpoint written there, by an error, a signal or a callback of
Lightning's. So every checkpoint gets what was remembered at the end of its step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_posttrain.callbacks.protocols import FinishesSteps
from lit_posttrain.runs.checkpoint_files import tensor_bytes

_SMALL = 1 << 20  # bytes; a callback that keeps a copy of the weights speaks for itself


@dataclass
class FinishedStep:
    """step: `Trainer.global_step`. loops, callbacks: their states, under the keys of a checkpoint. validation_due: True
    if a validation follows the step and has not been done."""

    step: int
    loops: dict[str, Any]
    callbacks: dict[str, Any]
    validation_due: bool

    @classmethod
    def of(cls, trainer: Trainer, pl_module: LightningModule, validation_due: bool) -> FinishedStep:
        """The step that has just ended, or been validated."""
        if isinstance(pl_module, FinishesSteps):
            pl_module.finish_step()
        states = {}
        loosely: Any = trainer  # `callbacks` is set by a connector, unseen by type checkers
        for callback in loosely.callbacks:
            if isinstance(callback, Checkpoint):  # their state changes only when they save
                continue
            state = callback.state_dict()
            if state and tensor_bytes(state) <= _SMALL:
                states[callback.state_key] = copy.deepcopy(state)
        return cls(trainer.global_step, trainer.fit_loop.state_dict(), states, validation_due)

    def put_into(self, checkpoint: dict[str, Any]) -> None:
        """Make a checkpoint one of this step's end, but for the method's part, which the method writes itself."""
        checkpoint["loops"]["fit_loop"] = self.loops
        checkpoint["callbacks"] |= self.callbacks


def validates_next(trainer: Trainer) -> bool:
    """True if a validation is planned after the micro-batch that has just been trained on. One that Lightning adds
    because the run stops, or after a period of time, is not planned."""
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if interval is None or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    loop = trainer.fit_loop
    if interval == float("inf"):  # a stream that does not know its end
        limit = trainer.limit_train_batches
        ends = isinstance(limit, int) and (loop.batch_idx + 1) % limit == 0
        return ends or loop.epoch_loop.batch_progress.is_last_batch
    done = loop.total_batch_idx if every is None else loop.batch_idx
    return (done + 1) % interval == 0


def begin_with_validation(checkpoint: dict[str, Any]) -> None:
    """Set the loops of a checkpoint, saved at a step's end, to the start of the validation after it: Lightning resumes
    an interrupted validation, here from its first batch."""
    loops = checkpoint["loops"]["fit_loop"]
    for counts in (loops["epoch_loop.batch_progress"][scope] for scope in ("total", "current")):
        counts["completed"] = counts["processed"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    before = validation["total"]["completed"]
    validation["total"] |= {"ready": before + 1, "started": before + 1, "processed": before}
    validation["current"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validation["is_last_batch"] = False
