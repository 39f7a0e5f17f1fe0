"""Prompts and runs of on-policy methods, and models beside the tiny one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from transformers import AutoModelForCausalLM, MambaConfig

from helpers import tiny
from helpers.runs import quiet_trainer
from lit_posttrain import GRPO, ModelSpec, OnlineDPO, PromptData, RolloutConfig
from lit_posttrain.rewards import FunctionReward, Reward


def prompts(folder: Path, count: int = 12, **options: Any) -> PromptData:
    """Four prompts a rollout."""
    file = folder / "prompts.jsonl"
    rows = [{"prompt": f"tell me about {i}", "answer": str(i)} for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptData(str(file), **{"batch_size": 4, "cache_dir": str(folder / "cache"), **options})


def letters(completions: list[str]) -> list[float]:
    """A reward that is seldom the same twice."""
    return [float(len(said)) for said in completions]


def grpo(model: Path, rewards: Sequence[Reward] = (), **options: Any) -> GRPO:
    """Eight tokens for each of four responses, rewarded for their letters where no reward is given; rollout: further
    options of it."""
    rollout = RolloutConfig(**{"group_size": 4, "max_new_tokens": 8, **options.pop("rollout", {})})
    return GRPO(ModelSpec(str(model)), list(rewards) or [FunctionReward(letters)], rollout=rollout, **options)


def ones(completions: list[str]) -> list[float]:
    """A reward that is always the same."""
    return [1.0] * len(completions)


def online_dpo(model: Path, rewards: Sequence[Reward] = (), **options: Any) -> OnlineDPO:
    """As `grpo`."""
    rollout = RolloutConfig(**{"group_size": 4, "max_new_tokens": 8, **options.pop("rollout", {})})
    return OnlineDPO(ModelSpec(str(model)), list(rewards) or [FunctionReward(letters)], rollout=rollout, **options)


def fit(module: pl.LightningModule, data: Any, folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """Train for two rollouts, every step logged. ckpt_path: what the run goes on from."""
    resumed = options.pop("ckpt_path", None)
    chosen = {"max_epochs": 2, "default_root_dir": folder, "log_every_n_steps": 1, **options}
    trainer = quiet_trainer(*callbacks, **chosen)
    trainer.fit(module, datamodule=data, ckpt_path=None if resumed is None else str(resumed))
    return trainer


def save_recurrent(folder: Path, seed: int = 0) -> Path:
    """A tiny Mamba with the tiny tokenizer, which reads one sequence a row and has no limit of positions."""
    torch.manual_seed(seed)
    config = MambaConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        time_step_rank=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder
