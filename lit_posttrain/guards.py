"""What a process does about failures and signals before its trainer takes care of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_posttrain.errors import PostTrainError, first_line

TERMINATED = 128 + 15  # what a shell reports of a process that SIGTERM ended


@contextmanager
def explained_failures() -> Iterator[None]:
    """Make one-line errors of what Lightning refuses and of a GPU that is too small."""
    try:
        yield
    except MisconfigurationException as problem:
        text = first_line(problem)
        if "backend found" in text:
            text = f"accelerator: {text} torch sees no such device here; leave --trainer.accelerator out, or pass cpu"
        raise PostTrainError(f"--trainer: {text}") from problem
    except torch.OutOfMemoryError as problem:
        raise PostTrainError(
            f"the GPU's memory is too small ({first_line(problem)}); cut a step into more micro-batches "
            "(--trainer.accumulate_grad_batches 4), recompute activations (--model.policy.checkpointing true), or "
            "train adapters (--config with/lora.yaml)"
        ) from problem


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind the process, so that what a run has begun before its first step is cleared away; while it
    trains, `GracefulInterrupt` saves instead."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(TERMINATED)

    ours = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, leave) if ours else None
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, previous)
