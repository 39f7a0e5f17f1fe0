"""best.ckpt: the state with the best validation so far."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from lit_posttrain.callbacks.monitors import refuse_misspelt
from lit_posttrain.errors import PostTrainError, on_all_ranks
from lit_posttrain.trainer_state import dry_run


class BestCheckpoint(Checkpoint):
    """Keeps `best.ckpt` in the run's folder: the state with the best value of a metric of the validation."""

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        """
        Args:
            monitor: Name of a metric of the validation.
            mode: min if the lowest value is the best, max if the highest is.
        """
        self.monitor, self.mode = monitor, mode
        self.best_score: float | None = None
        self.best_model_path = ""  # what Trainer.test(ckpt_path="best") reads
        self._looked = False

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}[{self.monitor},{self.mode}]"

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to validate within an optimizer step: a run could not be resumed exactly from such a checkpoint.

        Raises:
            PostTrainError: if the interval of the validation is not a multiple of the accumulation.
        """
        interval, accumulate = trainer.val_check_batch, trainer.accumulate_grad_batches
        if not trainer.enable_validation or accumulate == 1 or interval == trainer.num_training_batches:
            return
        if interval is None or (isinstance(interval, int) and interval % accumulate):
            what = "a time" if interval is None else f"{interval} micro-batches"
            raise PostTrainError(
                f"--trainer.val_check_interval is {what}, which is not a multiple of "
                f"--trainer.accumulate_grad_batches {accumulate}: best.ckpt would hold half an optimizer step"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """After the first step that is logged, refuse a misspelt metric, of any callback that monitors one.

        Raises:
            PostTrainError: see `refuse_misspelt`.
        """
        if self._looked or not trainer.enable_validation:
            return
        self._looked = refuse_misspelt(trainer, pl_module, self.monitor)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the metric is better than ever.

        Raises:
            PostTrainError: if the validation has no such metric.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or dry_run(trainer):
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics and float(metrics.get("val/reward/missing_ratio", 0.0)) == 1.0:
            told = (
                "no reward has a say on any response to the validation's prompts, so there is no val/reward: look "
                "whether their rows have the columns that the rewards read; of a judge that compares answers there is "
                "none, so choose a metric with --monitor"
            )
            raise on_all_ranks(PostTrainError(told))
        if self.monitor not in metrics:
            known = ", ".join(sorted(name for name in metrics if name.startswith("val/"))) or "none"
            told = f"--monitor {self.monitor}: not a metric of the validation; choose one of: {known}"
            raise on_all_ranks(PostTrainError(told))
        score = float(metrics[self.monitor])
        if not trainer.strategy.broadcast(_best(trainer).exists()):  # a run that began with another one's checkpoint
            self.best_score = None
        if not trainer.strategy.reduce_boolean_decision(self._better(score)):
            return
        path = _best(trainer)
        before, self.best_score = self.best_score, score
        try:
            trainer.save_checkpoint(path)
        except BaseException:
            self.best_score = before  # what is saved now must not know of a best.ckpt that there is not
            raise
        self.best_model_path = str(path)

    def _better(self, score: float) -> bool:
        if math.isnan(score) or self.best_score is None:
            return not math.isnan(score)
        return score < self.best_score if self.mode == "min" else score > self.best_score


def _best(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "best.ckpt"
