"""A short run of distillation, and what it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_posttrain import ConversationData, Distillation, ModelSpec, RolloutConfig
from lit_posttrain.core.optimisation import Optim

TEMPERATURE = 0.7
CONSTANT = Optim(lr=3e-3, schedule="constant", warmup_ratio=0.0)


def distillation(model: Path, teacher: Path, spec: dict[str, Any] | None = None, **options: Any) -> Distillation:
    """Of one short response to each prompt; rollout: further options of it. spec: of the teacher."""
    rollout = {"group_size": 1, "max_new_tokens": 8, "temperature": TEMPERATURE, **options.pop("rollout", {})}
    student = ModelSpec(str(model), **options.pop("student", {}))
    return Distillation(student, ModelSpec(str(teacher), **(spec or {})), rollout=RolloutConfig(**rollout), **options)


def chats(folder: Path, **options: Any) -> ConversationData:
    file = folder / "chats.jsonl"
    rows = [{"prompt": f"tell me about {i}", "completion": "seven wizards " * (1 + i % 3)} for i in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ConversationData(str(file), **{"batch_size": 4, "cache_dir": str(folder / "cache"), **options})


def weights(module: Distillation) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
