"""One-line errors for failures that are mistakes in a config or limits of the machine."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_posttrain.cli.failures import buried
from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.imports import own_place

_LIGHTNING = f"{Path(lightning.__file__).parent}/"
# messages of gloo and NCCL when another process has ended
_LOST = re.compile(r"Connection (closed|reset) by peer|remote process exited")
_LOGGERS = f"{_LIGHTNING}pytorch/loggers/"


@contextmanager
def explained_failures(going_on: Callable[[], str]) -> Iterator[None]:
    """Turn into one-line errors what Lightning refuses, a GPU out of memory, and the end of another process. Failures
    within Lightning, or in code of one's own, keep their traceback. going_on: returns a sentence on how to go on after
    the end of another process."""
    try:
        yield
    except torch.OutOfMemoryError as problem:
        raise PostTrainError(
            f"the GPU's memory is too small ({first_line(problem)}); cut a step into more micro-batches "
            "(--trainer.accumulate_grad_batches 4), recompute activations (--model.policy.checkpointing true), or "
            "train adapters (--config with/lora.yaml)"
        ) from problem
    except Exception as latest:
        first = _first_failure(latest)
        if isinstance(first, RuntimeError) and _LOST.search(str(first)):
            raise PostTrainError(
                "another process of this run has ended, and this one cannot go on without it; what it said is above; "
                f"{going_on()}"
            ) from first
        refusal = None if buried(first) else _refusal(first)
        if refusal is not None:
            raise PostTrainError(refusal) from first
        if first is not latest:
            raise first from None
        raise


def _first_failure(problem: BaseException) -> BaseException:
    """The failure that ended a run, without those of callbacks whose `on_exception` failed afterwards."""
    while problem.__context__ is not None and not problem.__suppress_context__:
        if all(frame.name != "on_exception" for frame in traceback.extract_tb(problem.__traceback__)):
            break
        problem = problem.__context__
    return problem


def _refusal(problem: BaseException) -> str | None:
    """The message with which Lightning or one of its loggers refuses a choice of the config; None for anything else."""
    seen: BaseException | None = problem
    while seen is not None:
        if _refused_by_lightning(seen):
            text = first_line(seen) if not isinstance(seen, KeyError) else str(seen.args[0]).split("\n")[0]
            if "backend found" in text:
                text = (
                    f"accelerator: {text} torch sees no such device here; leave --trainer.accelerator out, or pass cpu"
                )
            return f"{own_place(seen, _LIGHTNING) or '--trainer'}: {text}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    frames = traceback.extract_tb(problem.__traceback__)
    if any(frame.filename.startswith(_LOGGERS) for frame in frames):  # such as a service without its key
        return f"--trainer.logger: {first_line(problem)}"
    return None


def _refused_by_lightning(problem: BaseException) -> bool:
    """True for an exception that Lightning raises on purpose; False for a failure within it."""
    if isinstance(problem, MisconfigurationException):
        return True
    frames = traceback.extract_tb(problem.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_LIGHTNING) and (frames[-1].line or "").startswith("raise ")
