"""What a checkpoint says beside weights and optimizer, as it was when the last optimizer step ended.

Between two optimizer steps the weights stand still while everything else moves on: counters, the place in the data, the
state of callbacks. A checkpoint that is written there, by an error, a signal or a callback of Lightning's, would not be
one that a run resumes from exactly. So all that is small is remembered at the end of every step.
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
    """step: `Trainer.global_step`. loops, callbacks: their states, by the keys that checkpoints have. validation_due:
    whether the step is to be validated, and has not been."""

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
            if isinstance(callback, Checkpoint):  # which change only as they save
                continue
            state = callback.state_dict()
            if state and tensor_bytes(state) <= _SMALL:
                states[callback.state_key] = copy.deepcopy(state)
        return cls(trainer.global_step, trainer.fit_loop.state_dict(), states, validation_due)

    def put_into(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint be one of this step's end. What the method has to say of it, it says itself."""
        checkpoint["loops"]["fit_loop"] = self.loops
        checkpoint["callbacks"] |= self.callbacks


def validates_next(trainer: Trainer) -> bool:
    """True if the plan has a validation behind the micro-batch that has just been trained on. One that Lightning adds
    because the run is to stop, or at a time of the clock, is not planned."""
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
    """Put the loops of a checkpoint, of a step's end, into the validation behind it, before its first batch: Lightning
    goes on with an interrupted validation, and so makes up all of it."""
    loops = checkpoint["loops"]["fit_loop"]
    for counts in (loops["epoch_loop.batch_progress"][scope] for scope in ("total", "current")):
        counts["completed"] = counts["processed"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    before = validation["total"]["completed"]
    validation["total"] |= {"ready": before + 1, "started": before + 1, "processed": before}
    validation["current"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    validation["is_last_batch"] = False
