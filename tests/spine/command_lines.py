"""Every method as people start it: `lit-posttrain fit` on a ready-made config, a tiny model and small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cases import METHODS, teacher_of

STEPS, SAVED_EVERY = 8, 3  # the phases of on-policy methods are of two steps: step 3 is within one, step 6 ends one

_CONFIGS = {
    "sft": "sft",
    "dpo": "dpo",
    "simpo": "simpo",
    "orpo": "orpo",
    "kto": "kto",
    "grpo": "grpo_gsm8k",
    "ppo": "ppo",
    "online_dpo": "online_dpo",
    "distillation": "distillation",
    "reward": "reward_kwise",
}
_SAMPLING = ["--model.rollout.max_new_tokens", "8", "--model.rollout.group_size", "4"]
_SAMPLING += ["--model.rollout.minibatches", "2", "--trainer.check_val_every_n_epoch", "3"]
_SAMPLING += ["--model.rewards", "[{class_path: FunctionReward, init_args: {function: cases.vowels}}]"]
_BETA = ["--model.beta", "0.1"]
_EXTRA = {
    "dpo": ["--model.reference", "copy"],
    "grpo": [*_SAMPLING, *_BETA],
    "ppo": [*_SAMPLING, *_BETA, "--model.critic.lr", "1e-2"],
    # a step of 8 prompts, whose pairs stay whole: one for each micro-batch of four processes
    "online_dpo": [*_SAMPLING, *_BETA, "--data.batch_size", "16"],
    "distillation": [*_SAMPLING, *_BETA, "--model.student_share", "0.5", "--model.teacher.dtype", "float64"],
}


def fit_command(method: str, model: Path, data: Path, runs: Path, name: str, *options: str) -> list[str]:
    """The arguments of `lit-posttrain` that train a method for STEPS steps into `runs`/`name`; options come last."""
    files = METHODS[method].data(data).paths  # type: ignore[attr-defined]  # of every data module here
    # in double precision what differs by rounding alone is easily told from what differs
    words = ["fit", "--config", f"configs/{_CONFIGS[method]}.yaml", "--runs", str(runs), "--name", name]
    words += ["--model.policy.path", str(model), "--model.policy.dtype", "float64", "--data.path", str(files)]
    words += [
        "--data.batch_size",
        "8",
        "--data.val_fraction",
        "0.1",
        "--wandb.mode",
        "disabled",
        *_EXTRA.get(method, []),
    ]
    words += ["--model.teacher.path", str(teacher_of(model))] if method == "distillation" else []
    words += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.max_epochs", "-1"]
    words += ["--trainer.max_steps", str(STEPS), "--checkpoint_every", str(SAVED_EVERY)]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.accumulate_grad_batches", "2"]
    words += ["--model.optim.lr", "1e-3", "--model.optim.weight_decay", "0.1"]
    return [*words, "--trainer.callbacks+=run_commands.Image", *options]


SHARDED = ["--config", "configs/with/fsdp2.yaml"]
LORA = ["--config", "configs/with/lora.yaml", "--model.policy.lora.r", "4"]


def callback(name: str, **arguments: Any) -> str:
    """The option that adds a callback of run_commands.py."""
    return "--trainer.callbacks+=" + json.dumps({"class_path": f"run_commands.{name}", "init_args": arguments})
