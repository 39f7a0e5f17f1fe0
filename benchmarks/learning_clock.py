"""What a run of a learning benchmark reached, and when. Not to be run by itself."""

from __future__ import annotations

import json
import time
from typing import Any

import lightning.pytorch as pl
import psutil


def seconds() -> float:
    """Since this process began: loading the model counts."""
    return time.time() - float(psutil.Process().create_time())


NOTED = ("reward", "kl/response", "kl_coefficient", "completions/mean_length")  # metrics of a step


class LearningClock(pl.Callback):
    """Writes a line of figures for every step, and for every validation. held_out: the metric of a validation that is
    written under this name."""

    def __init__(self, file: str, held_out: str = "val/reward") -> None:
        self.file, self.held_out = file, held_out

    def _note(self, trainer: Any, **figures: float) -> None:
        row = {"step": trainer.global_step, "seconds": round(seconds(), 1), **figures}
        with open(self.file, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        known = trainer.callback_metrics
        figures = {name: float(known[f"train/{name}"]) for name in NOTED if f"train/{name}" in known}
        if "hacking/flags" in known:
            figures["hacking/flags"] = float(known["hacking/flags"])
        self._note(trainer, **figures)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        known = trainer.callback_metrics
        length = float(known["val/completions/mean_length"])
        self._note(trainer, held_out=float(known[self.held_out]), held_out_length=length)


def letters(completions: list[str]) -> list[float]:
    """A reward that can be raised without end: a tenth for every letter e."""
    return [said.count("e") / 10 for said in completions]
