"""Collectives on Python objects. Every rank must call them, in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

from lit_posttrain.errors import PostTrainError, on_all_ranks

T = TypeVar("T")


def together(trainer: Trainer, work: Callable[[], T]) -> T:
    """Run `work()` on every rank and return this rank's result. Collective.

    Raises:
        PostTrainError: on every rank if `work` has raised on any, so that no rank blocks in a later collective. The
            rank where it raised gets its own exception.
    """
    try:
        found = work()
    except Exception as problem:
        all_gather_object(str(problem) or type(problem).__name__, trainer)
        on_all_ranks(problem)
        raise
    if told := "; ".join(dict.fromkeys(said for said in all_gather_object("", trainer) if said)):
        raise on_all_ranks(PostTrainError(told))
    return found


def all_gather_object(value: T, trainer: Trainer) -> list[T]:
    """The values of all ranks, in rank order. Collective."""
    if trainer.world_size == 1:
        return [value]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, value)
    return found
