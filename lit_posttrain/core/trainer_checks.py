"""Refuse what Lightning offers and does not work here, in one line, before anything is computed.

`check_chosen` reads the options of a command before their classes are made; `check_trainer` looks at a Trainer, however
it was made: every method asks at the beginning of a run.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from lit_posttrain.core.directions import direction_of
from lit_posttrain.core.supported import (
    ACCELERATORS,
    CALLBACKS,
    LOGGERS,
    PLUGINS,
    PRECISIONS,
    PROFILER_NAMES,
    PROFILERS,
    STRATEGIES,
    Support,
)
from lit_posttrain.core.supported_options import OPTIONS
from lit_posttrain.core.trainer_numbers import NUMBERS, check_numbers
from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import place_of
from lit_posttrain.overrides import check_overrides
from lit_posttrain.trainer_state import dry_run, validates
from lit_posttrain.types import TreeBatch

_LISTED: dict[str, Mapping[str, Support]] = {
    "callbacks": CALLBACKS,
    "logger": LOGGERS,
    "plugins": PLUGINS,
    "profiler": PROFILERS | {name: PROFILERS[kind] for name, kind in PROFILER_NAMES.items()},
    "strategy": STRATEGIES,
    "precision": PRECISIONS,
    "accelerator": ACCELERATORS,
}
_OWNERS = ("lightning", "lit_posttrain")


def check_chosen(options: Any) -> None:
    """Refuse what a command chooses for its Trainer. options: the parsed section `trainer`, whose classes are not made
    yet.

    Raises:
        PostTrainError: naming the option, the reason and what to do instead.
    """
    for option in _LISTED:
        chosen = options.get(option)
        for one in chosen if isinstance(chosen, list) else [chosen]:
            _check_one(option, one)
    defaults = {name: p.default for name, p in inspect.signature(pl.Trainer).parameters.items()}
    for option, support in OPTIONS.items():
        if not support.works and options.get(option) != defaults[option]:
            raise PostTrainError(f"--trainer.{option} {_written(options.get(option))}: {support.says}")
    if int(options.num_nodes) > 1 and not _knows_its_node():
        raise PostTrainError(
            f"--trainer.num_nodes {options.num_nodes}: nothing says which node this is, and it would wait for the "
            "others for ever; start it with srun or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK"
        )


def _check_one(option: str, chosen: Any) -> None:
    path = chosen.get("class_path") if hasattr(chosen, "get") else None
    if path is not None:
        module, _, name = str(path).rpartition(".")
        check_class(option, getattr(_module(module), name))
        started = (chosen.get("init_args") or {}).get("start_method", "popen")
        if option == "strategy" and started != "popen":
            raise PostTrainError(f"--trainer.strategy.start_method {started}: {STRATEGIES['ddp_spawn'].says}")
    elif isinstance(chosen, (str, int)) and not isinstance(chosen, bool):
        support = _LISTED[option].get(str(chosen))
        if support is not None and not support.works:
            raise PostTrainError(f"--trainer.{option} {chosen}: {support.says}")


def named_strategy(name: str) -> str | None:
    """The import path of a strategy given by the name of its class, which Lightning would take for a name in its
    registry; None for those."""
    homes = ("lightning.pytorch.strategies", "lit_posttrain.models.sharding")
    if "." in name:
        return name
    return next((f"{home}.{name}" for home in homes if inspect.isclass(getattr(_module(home), name, None))), None)


def check_class(option: str, kind: type) -> None:
    """Refuse a class that does not work here, or that inherits from such a one; of base classes only themselves.

    Raises:
        PostTrainError: with the reason and what to do instead.
    """
    listed = _LISTED[option]
    for parent in kind.__mro__:
        if parent.__module__.partition(".")[0] not in _OWNERS or parent.__name__ not in listed:
            continue
        support = listed[parent.__name__]
        base = "base class" in support.says
        if not support.works and (parent is kind or not base):
            derived = "" if parent is kind else f" (a {parent.__name__})"
            raise PostTrainError(f"--trainer.{option} {kind.__name__}{derived}: {support.says}")
        if support.works:
            return


def _module(name: str) -> Any:
    return importlib.import_module(name)


def check_trainer(trainer: pl.Trainer) -> None:
    """Refuse what a run cannot be right with, before it begins. Loggers and plugins are the command line's own matter:
    in a script they may be anything.

    Raises:
        PostTrainError: naming the option of the command line, which has the name of the Trainer's argument.
    """
    loosely: Any = trainer  # most of these are set by connectors, unseen by type checkers
    for callback in loosely.callbacks:
        check_class("callbacks", type(callback))
        check_overrides(type(callback))
        _check_average(trainer, callback)
        _check_mode(trainer, callback)
    check_class("strategy", type(trainer.strategy))
    check_class("profiler", type(loosely.profiler))
    precision = PRECISIONS.get(str(trainer.precision))
    if precision is not None and not precision.works:
        raise PostTrainError(f"--trainer.precision {trainer.precision}: {precision.says}")
    if trainer.state.fn == TrainerFn.FITTING:
        _check_numbers(trainer)


def require_monitored(trainer: pl.Trainer) -> None:
    """Refuse callbacks that look for a metric of a validation in a run without one; Lightning would fail at the end of
    the first epoch.

    Raises:
        PostTrainError: naming the callback, and how to validate.
    """
    if validates(trainer) or dry_run(trainer):
        return
    loosely: Any = trainer
    for callback in loosely.callbacks:
        if not isinstance(callback, (EarlyStopping, ModelCheckpoint)) or not getattr(callback, "strict", True):
            continue
        if not (callback.monitor or "").startswith("val/"):
            continue
        name = f"--trainer.callbacks {type(callback).__name__}: it monitors {callback.monitor}"
        if loosely.limit_val_batches == 0:
            raise PostTrainError(f"{name}, and --trainer.limit_val_batches 0 leaves validation out; drop one")
        share = getattr(getattr(trainer, "datamodule", None), "val_fraction", 0)
        held_out = f" (--data.val_fraction {share:g} holds out none)" if share else ""
        raise PostTrainError(
            f"{name}, and there are no rows to validate on{held_out}; name a file with --data.val_path, or hold "
            f"{'more ' if share else ''}rows out with --data.val_fraction"
        )


def require_trees(module: pl.LightningModule, batch: Any) -> None:
    """Refuse a batch of a loader that is not made for these methods.

    Raises:
        PostTrainError: naming the data module.
    """
    if isinstance(batch, TreeBatch):
        return
    data = getattr(module.trainer, "datamodule", None)
    made_by = "the data loader" if data is None else type(data).__name__
    raise PostTrainError(
        f"{made_by} makes batches of type {type(batch).__name__}, and {type(module).__name__} takes TreeBatch: inherit "
        "from a data module of lit_posttrain, or read your rows with --data.format"
    )


def _check_average(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """An average is kept, saved and restored as a whole model on one device."""
    if not isinstance(callback, WeightAveraging):
        return
    whole = "leave it out, or train the whole model in one process or under ddp"
    name = f"--trainer.callbacks {type(callback).__name__}"
    if not trainer.lightning_module.strict_loading:
        raise PostTrainError(
            f"{name}: it averages all weights, and of a model with adapters only those are saved; {whole}"
        )
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise PostTrainError(f"{name}: it cannot average weights that are sharded; {whole}")
    # one of one's own may decide by something else: `LastCheckpoint` asks it at the end of every epoch
    decides = type(callback).should_update is EMAWeightAveraging.should_update
    if decides and getattr(callback, "update_starting_at_epoch", None) is not None:
        raise PostTrainError(
            f"{name}: it would take the weights of an epoch's end into the average after last.ckpt is saved; average "
            "over steps instead (update_every_n_steps, update_starting_at_step)"
        )


def check_states(trainer: pl.Trainer) -> None:
    """Refuse callbacks of which a checkpoint could not hold the state: Lightning would fail when a run is resumed.

    Raises:
        PostTrainError: naming the callback.
    """
    loosely: Any = trainer
    for callback in loosely.callbacks:
        method = type(callback).state_dict
        state = {} if method.__module__.partition(".")[0] in _OWNERS else callback.state_dict()
        if state is not None and not isinstance(state, dict):
            raise PostTrainError(
                f"{type(callback).__name__}.state_dict ({place_of(method)}) returned {type(state).__name__}; let it "
                "return a dict with what load_state_dict needs"
            )


def check_epoch(trainer: pl.Trainer) -> None:
    """Refuse an epoch that would end within an optimizer step, whose denominators are those of the whole step.

    Raises:
        PostTrainError: naming the options.
    """
    accumulate, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    if batches != math.inf and batches % accumulate and not dry_run(trainer):
        raise PostTrainError(
            f"--trainer.limit_train_batches (or overfit_batches) leaves {batches} micro-batches an epoch, not a "
            f"multiple of --trainer.accumulate_grad_batches {accumulate}: the last step would lack some of its rows"
        )


def check_accumulation(trainer: pl.Trainer) -> None:
    """Refuse another accumulation than the one that the loader has planned its steps with.

    Raises:
        PostTrainError: if a callback has changed it.
    """
    planned = getattr(trainer.train_dataloader, "accumulate", None)
    if planned not in (None, trainer.accumulate_grad_batches):
        raise PostTrainError(
            f"a callback has set accumulate_grad_batches to {trainer.accumulate_grad_batches}, and every step was "
            f"planned of {planned} micro-batches: leave that callback out"
        )


def _check_mode(trainer: pl.Trainer, callback: pl.Callback) -> None:
    """Lightning's callbacks take the lowest value for the best unless they are told."""
    module = trainer.lightning_module
    if not isinstance(callback, (EarlyStopping, ModelCheckpoint)):
        return
    best = direction_of(type(module), callback.monitor) if callback.monitor else None
    if best is not None and callback.mode != best:
        extreme = "lowest" if best == "min" else "highest"
        raise PostTrainError(
            f"--trainer.callbacks {type(callback).__name__}: mode is {callback.mode}, and the best {callback.monitor} "
            f"is the {extreme}; pass --trainer.callbacks.mode {best}"
        )


def _check_numbers(trainer: pl.Trainer) -> None:
    loosely: Any = trainer
    if loosely.reload_dataloaders_every_n_epochs:
        raise PostTrainError(
            f"--trainer.reload_dataloaders_every_n_epochs {loosely.reload_dataloaders_every_n_epochs}: "
            f"{OPTIONS['reload_dataloaders_every_n_epochs'].says}"
        )
    # there is no val_check_interval where it is a time
    check_numbers({option: getattr(trainer, option) for option in NUMBERS if hasattr(trainer, option)})


def _knows_its_node() -> bool:
    return any(
        name in os.environ for name in ("NODE_RANK", "GROUP_RANK", "SLURM_NODEID", "LSB_JOBID", "KUBERNETES_PORT")
    )


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
