"""What a process does about failures before its trainer takes care of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_posttrain.errors import PostTrainError, first_line


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
