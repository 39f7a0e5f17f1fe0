"""What a run of grpo_learning.py or kl_control.py reached, and when. Not to be run by itself."""

from __future__ import annotations

import json
import time
from typing import Any

import lightning.pytorch as pl
import psutil


def seconds() -> float:
    """Since this process began: loading the model counts."""
    return time.time() - float(psutil.Process().create_time())


NOTED = ("reward", "kl/response", "kl_coefficient")  # metrics of a step


class LearningClock(pl.Callback):
    """Writes a line of figures for every step, and for every validation."""

    def __init__(self, file: str) -> None:
        self.file = file

    def _note(self, trainer: Any, **figures: float) -> None:
        row = {"step": trainer.global_step, "seconds": round(seconds(), 1), **figures}
        with open(self.file, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        known = trainer.callback_metrics
        figures = {name: float(known[f"train/{name}"]) for name in NOTED if f"train/{name}" in known}
        self._note(trainer, **figures)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._note(trainer, held_out=float(trainer.callback_metrics["val/reward"]))


def letters(completions: list[str]) -> list[float]:
    """A reward that can be raised without end: a tenth for every letter e."""
    return [said.count("e") / 10 for said in completions]
