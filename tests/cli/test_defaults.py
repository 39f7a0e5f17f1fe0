"""What a config makes of a class is what its constructor makes of it: no default is lost or changed on the way."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from lit_posttrain import callbacks, rewards
from lit_posttrain.cli import options
from lit_posttrain.core.module import PostTrainingModule
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.judges.spec import JudgeBudget, JudgeLimits, JudgeSpec
from lit_posttrain.loggers import MetricsCSV, WandbOptions
from lit_posttrain.models.sharding import FSDP2Strategy
from lit_posttrain.models.spec import LoRASpec, ModelSpec
from lit_posttrain.on_policy.critics import Critic
from lit_posttrain.on_policy.options import RolloutConfig
from lit_posttrain.on_policy.policy_gradient import Clip
from lit_posttrain.rewards import ExactMatch
from lit_posttrain.rollout.engine import EngineSpec, Sampling

# what has no default, as Python and as text; for all classes alike
GIVEN: dict[str, tuple[Any, Any]] = {
    "policy": (ModelSpec("somewhere"), {"path": "somewhere"}),
    "teacher": (ModelSpec("elsewhere"), {"path": "elsewhere"}),
    "rewards": ([ExactMatch()], [{"class_path": "lit_posttrain.rewards.ExactMatch"}]),
    "path": ("somewhere", "somewhere"),
    "function": (textwrap.dedent, "textwrap.dedent"),
    "pattern": ("x", "x"),
    "folder": ("somewhere", "somewhere"),
    "model": ("somewhere", "somewhere"),
    "judge": (JudgeSpec("somewhere"), {"model": "somewhere"}),
    "prompts": (["x"], ["x"]),
    "limit": (5, 5),
    "buffer": (5, 5),
}
APART = ("_clock",)  # the time of day


def subclasses(module: Any, base: type) -> list[type]:
    """Those of a base class that a module has."""
    return [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, base) and k is not base]


CLASSES = sorted(
    {
        *subclasses(options, PostTrainingModule),
        *subclasses(options, LightningDataModule),
        *subclasses(rewards, rewards.Reward),
        *(kind for name, kind in vars(callbacks).items() if isinstance(kind, type)),
        *(
            ModelSpec,
            LoRASpec,
            Optim,
            Sampling,
            RolloutConfig,
            EngineSpec,
            Clip,
            Critic,
            JudgeSpec,
            JudgeLimits,
            JudgeBudget,
            WandbOptions,
            MetricsCSV,
            FSDP2Strategy,
        ),
    },
    key=lambda kind: kind.__name__,
)


def plain(value: Any, depth: int = 0) -> Any:
    """What two objects are compared by: plain values, and of others their class and attributes."""
    if isinstance(value, (list, tuple)):
        return [plain(one, depth) for one in value]
    if isinstance(value, dict):
        return {str(name): plain(one, depth) for name, one in value.items()}
    if value is None or isinstance(value, (bool, int, float, str, Path, type)):
        return value
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if depth > 3 or not hasattr(value, "__dict__"):
        return type(value).__name__
    held = {name: plain(one, depth + 1) for name, one in vars(value).items() if name not in APART}
    return [type(value).__name__, held]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_command_line_has_the_constructors_defaults(kind: Callable[..., Any]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    assert not [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)], "defaults that nobody can see"
    needed = [p.name for p in parameters if p.default is p.empty]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "it")
    found = parser.parse_object({"it": {name: GIVEN[name][1] for name in needed}})
    made = parser.instantiate(found).it
    assert plain(made) == plain(kind(**{name: GIVEN[name][0] for name in needed}))
