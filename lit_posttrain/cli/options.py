"""The options of a run, and of everything that can be chosen for it, read from the signatures of the classes.

Importing this module is what gives the project's classes their short names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

# short names in configs need the class imported here
from lit_posttrain.callbacks import KLControl as KLControl
from lit_posttrain.callbacks import ReferenceSync as ReferenceSync
from lit_posttrain.callbacks import RewardHackingWatch as RewardHackingWatch
from lit_posttrain.callbacks import RewardLogger as RewardLogger
from lit_posttrain.callbacks import SampleLogger as SampleLogger
from lit_posttrain.callbacks import Throughput
from lit_posttrain.cli.families import add_family
from lit_posttrain.cli.own_classes import own_class
from lit_posttrain.cli.parsing.option_tree import Kind, Option, OptionTree, keep_tree, of_library
from lit_posttrain.cli.parsing.parser import ExactParser
from lit_posttrain.cli.parsing.signatures import add_kind, import_path, options_of
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.data.modules.conversation import ConversationData as ConversationData
from lit_posttrain.data.modules.preference import PreferenceData as PreferenceData
from lit_posttrain.data.modules.prompts import PromptData as PromptData
from lit_posttrain.loggers import WandbOptions
from lit_posttrain.methods.distillation import Distillation as Distillation
from lit_posttrain.methods.dpo import DPO as DPO
from lit_posttrain.methods.grpo import GRPO as GRPO
from lit_posttrain.methods.kto import KTO as KTO
from lit_posttrain.methods.online_dpo import OnlineDPO as OnlineDPO
from lit_posttrain.methods.orpo import ORPO as ORPO
from lit_posttrain.methods.ppo import PPO as PPO
from lit_posttrain.methods.reward import RewardModel as RewardModel
from lit_posttrain.methods.sft import SFT as SFT
from lit_posttrain.methods.simpo import SimPO as SimPO
from lit_posttrain.models.sharding import FSDP2Strategy as FSDP2Strategy
from lit_posttrain.on_policy.environment import Environment
from lit_posttrain.rewards import Reward

_FAMILIES: dict[str, type | tuple[type, ...]] = {
    "method": PostTrainingModule,
    "data module": pl.LightningDataModule,
    "reward": Reward,
    "environment": Environment,
    "callback": pl.Callback,
    "logger": Logger,
    "strategy": Strategy,
    "profiler": Profiler,
    "plugin": (Precision, ClusterEnvironment, CheckpointIO, LayerSync),
}


class RunParser(ExactParser, LightningArgumentParser):
    """Lightning's parser, with errors in one line."""

    def instantiate_classes(self, cfg: Any, **options: Any) -> Any:
        """As `ExactParser.built`."""
        return self.built(cfg, **options)


@dataclass
class RunOptions:
    """Options of a run beside model, data and trainer.

    Args:
        name: Name of the run's folder. Default: method, date and time.
        runs: Folder in which runs keep their folders.
        overwrite: Start anew in a run's folder that exists already.
        tune_allocator: On Linux CPUs keep freed memory in the process: up to half of a step's time.
        checkpoint_every: Optimizer steps from one last.ckpt to the next.
        monitor: Metric of the validation that selects best.ckpt. Default: the lowest val/loss, or the highest
            val/reward for methods that sample their responses.
        monitor_mode: min if the lowest value of --monitor is the best, max if the highest is. Needed only for metrics
            whose direction the method does not know.
    """

    name: str | None = None
    runs: str = "runs"
    overwrite: bool = False
    tune_allocator: bool = True
    checkpoint_every: int = 200
    monitor: str | None = None
    monitor_mode: Literal["min", "max"] | None = None


@dataclass
class AuditOptions:
    """Options of `audit` beside those of `fit`.

    Args:
        out: File for the report as JSON.
        show: Number of rows to print, with their trained tokens between brackets.
    """

    out: str | None = None
    show: int | None = None


def option_tree() -> OptionTree:
    """The tree of all options. It is saved for later commands, without classes from outside the libraries."""
    tree = OptionTree(families={family: {} for family in _FAMILIES})
    for family in _FAMILIES:
        add_family(tree, _FAMILIES, family)
    run = {
        "config": Option(),
        "print_config": Option(),
        "seed_everything": Option("bool | int"),
        **add_kind(tree, RunOptions, _FAMILIES).options,
        "trainer": Option(group=import_path(pl.Trainer)),
        "model": Option(family="method", required=True),
        "data": Option(family="data module", required=True),
        "wandb": Option(group=import_path(WandbOptions)),
        "throughput": Option(group=import_path(Throughput)),
    }
    for group in (pl.Trainer, WandbOptions, Throughput):
        add_kind(tree, group, _FAMILIES)
    for command, skipped in pl.cli.LightningCLI.subcommands().items():
        method = options_of(getattr(pl.Trainer, command), tree, _FAMILIES)
        tree.commands[command] = run | {name: o for name, o in method.options.items() if name not in skipped}
    # `audit` takes what `fit` takes, so that it takes a run's config
    tree.commands["audit"] = tree.commands["fit"] | add_kind(tree, AuditOptions, _FAMILIES).options
    of_libraries = {
        family: {name: own for name, paths in known.items() if (own := [p for p in paths if of_library(p)])}
        for family, known in tree.families.items()
    }
    kinds = {path: kind for path, kind in tree.kinds.items() if of_library(path)}
    keep_tree(OptionTree(tree.commands, kinds, of_libraries))
    return tree


def load_class(tree: OptionTree, family: str, path: str) -> Kind:
    """Add a class from outside the package to the tree, by its import path.

    Raises:
        PostTrainError: as `own_class`.
    """
    return own_class(tree, _FAMILIES, family, path)
