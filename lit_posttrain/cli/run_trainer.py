"""The callbacks that every run's Trainer gets beside those of its config, and checks of the Trainer's options."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from lit_posttrain.callbacks import (
    EvaluationReport,
    FiniteLossGuard,
    GracefulInterrupt,
    PredictionWriter,
    RunPlan,
    run_checkpoints,
)
from lit_posttrain.cli.run_place import RunPlace
from lit_posttrain.core.directions import direction_of, known_directions
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.trainer_checks import named_strategy
from lit_posttrain.errors import PostTrainError

_PROCESSES_PER_CORE = 4
Ask = Callable[[str], Any]


def training_callbacks(
    model: PostTrainingModule, place: RunPlace, option: Ask, requeue: bool, checkpoints: bool
) -> list[pl.Callback]:
    """Those of every run that trains. option: returns a parsed option by its dotted name. requeue: as in
    `PostTrainCLI`. checkpoints: False for a run that keeps none."""
    resume = place.resume_command
    found = [FiniteLossGuard(), RunPlan(_next_commands(place.folder, model)), GracefulInterrupt(resume, requeue)]
    if not checkpoints:
        return found
    monitor = option("monitor") or model.monitored
    mode = _mode_of(model, monitor, option("monitor_mode"))
    return [*found, *run_checkpoints(option("checkpoint_every"), monitor, mode, resume)]


def evaluating_callbacks(command: str, option: Ask) -> list[pl.Callback]:
    """Those of validate, test and predict."""
    checkpoint = option("ckpt_path")
    state = f"with the weights of {checkpoint}" if checkpoint else "as it is, without a --ckpt_path"
    report = EvaluationReport(f"{option('model.init_args.policy.path')} {state}")
    return [PredictionWriter(), report] if command == "predict" else [report]


def _mode_of(model: PostTrainingModule, monitor: str, given: Literal["min", "max"] | None) -> Literal["min", "max"]:
    """min if the lowest value of a metric is the best, max if the highest is."""
    declared = direction_of(type(model), monitor)
    mode = given or declared
    if mode is None:
        known = [f"val/{name}" for name in known_directions(type(model)) if "*" not in name]
        close = next(iter(difflib.get_close_matches(monitor, known, n=1, cutoff=0.6)), None)
        meant = f"did you mean {close}? Else pass" if close else "pass"
        raise PostTrainError(
            f"--monitor {monitor}: {meant} --monitor_mode min or max to say whether its lowest or highest value is best"
        )
    if declared is not None and mode != declared:
        extreme = "lowest" if declared == "min" else "highest"
        raise PostTrainError(f"--monitor_mode {mode}: the best {monitor} is the {extreme}; leave it out")
    return mode


def _next_commands(run: Path, model: PostTrainingModule) -> list[str]:
    """Commands for the use of the trained model."""
    out = shlex.quote(f"{run.name}-hf")
    use = f"score --model {out} --data FILE" if model.head == "score" else f"generate --model {out} --prompt TEXT"
    return [f"lit-posttrain export --ckpt {shlex.quote(str(run))} --out {out}", f"lit-posttrain {use}"]


def make_plain(options: Any) -> None:
    """Replace values of the Trainer's options that cannot be read or saved: the name of a strategy's class, which
    Lightning would look up among its own names, by a class_path; and Lightning's text enums, which YAML cannot write,
    by plain texts."""
    chosen = options.get("strategy")
    path = named_strategy(chosen) if isinstance(chosen, str) else None
    if path is not None:
        options.strategy = type(options)(class_path=path)  # jsonargparse's Namespace
    for callback in listed(options.get("callbacks")):
        arguments = callback.get("init_args") or {}
        for name, value in list(arguments.items()):
            if isinstance(value, Enum) and isinstance(value, str):
                arguments[name] = value.value


def listed(value: Any) -> list[Any]:
    """The values of an option that takes one or several, as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def refuse_too_many_processes(trainer: Any) -> None:
    """Refuse a --trainer.devices that would start thousands of processes on a CPU."""
    devices, cores = str(trainer.devices), os.cpu_count() or 1
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    if on_cpu and devices.isdigit() and int(devices) > _PROCESSES_PER_CORE * cores:
        raise PostTrainError(f"--trainer.devices {devices}: so many processes on {cores} CPU cores; leave it out")
