"""The options of a run, by the names that people type, and the classes that configs call by their short names."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import LightningArgumentParser

from lit_posttrain.callbacks import (
    KLControl,
    ReferenceSync,
    RewardHackingWatch,
    RewardLogger,
    SampleLogger,
    ThroughputMonitor,
)
from lit_posttrain.data.comparisons import PreferenceColumns
from lit_posttrain.data.conversation import ConversationData
from lit_posttrain.data.formats import Columns
from lit_posttrain.data.preference import PreferenceData
from lit_posttrain.data.prompts import PromptColumns, PromptData
from lit_posttrain.errors import OneLineErrors
from lit_posttrain.methods.dpo import DPO
from lit_posttrain.methods.grpo import GRPO
from lit_posttrain.methods.kto import KTO
from lit_posttrain.methods.orpo import ORPO
from lit_posttrain.methods.phases import Phases
from lit_posttrain.methods.policy_gradient import Clip
from lit_posttrain.methods.ppo import PPO, Critic
from lit_posttrain.methods.reward import RewardModel
from lit_posttrain.methods.sft import SFT
from lit_posttrain.methods.simpo import SimPO
from lit_posttrain.models.sharding import FSDP2Strategy as FSDP2Strategy  # for its short name
from lit_posttrain.models.spec import LoRASpec, ModelSpec
from lit_posttrain.rewards import (
    ExactMatch,
    FunctionReward,
    JsonValid,
    LengthPenalty,
    MathAnswer,
    Regex,
    Repetition,
    RewardModelScore,
)
from lit_posttrain.rollout.engine import EngineSpec, Sampling
from lit_posttrain.tracking import WandbOptions

# short names in configs need the class imported here
_METHODS = (SFT, DPO, KTO, SimPO, ORPO, RewardModel, GRPO, PPO)
_DATA = (ConversationData, PreferenceData, PromptData)
_REWARDS = (ExactMatch, FunctionReward, JsonValid, LengthPenalty, MathAnswer, Regex, Repetition, RewardModelScore)
_CALLBACKS = (SampleLogger, RewardLogger, RewardHackingWatch, KLControl, ReferenceSync)


class OneLineParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with one-line mistakes."""

    def option_names(self) -> list[str]:
        """The names that people type: of the run, the trainer, the methods, the data modules and the model."""
        homes: dict[str, tuple[Any, ...]] = {
            "trainer": (pl.Trainer,),
            "model": _METHODS,
            "model.policy": (ModelSpec,),
            "model.policy.lora": (LoRASpec,),
            "data": _DATA,
            "model.sampling": (Sampling,),
            "model.phases": (Phases,),
            "model.engine": (EngineSpec,),
            "model.clip": (Clip,),
            "model.critic": (Critic,),
            "model.rewards": _REWARDS,
            "data.columns": (Columns, PreferenceColumns, PromptColumns),
            "wandb": (WandbOptions,),
            "throughput": (ThroughputMonitor,),
            "trainer.callbacks": _CALLBACKS,
        }
        own = ["name", "runs", "resume", "overwrite", "config", "monitor", "monitor_mode", "checkpoint_every"]
        own += ["ckpt_path", "model.optimizer.init_args.lr", "model.optimizer.init_args.weight_decay"]
        named = [
            (place, name) for place, kinds in homes.items() for k in kinds for name in inspect.signature(k).parameters
        ]
        return list(dict.fromkeys([*own, *(f"{place}.{name}" for place, name in named)]))

    def class_names(self) -> dict[str, list[str]]:
        """Those with short names; Lightning's callbacks too."""
        theirs = [name for name in lightning_callbacks.__all__ if name != "Callback"]
        named = {"model": _METHODS, "data": _DATA, "model.rewards": _REWARDS, "trainer.callbacks": _CALLBACKS}
        found = {option: [kind.__name__ for kind in kinds] for option, kinds in named.items()}
        return found | {"trainer.callbacks": [*found["trainer.callbacks"], *theirs]}
