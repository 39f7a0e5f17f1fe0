"""A function that LambdaCallback calls."""

from __future__ import annotations

from typing import Any

STEPS: list[int] = []


def note_step(trainer: Any, *args: Any) -> None:
    STEPS.append(trainer.global_step)
