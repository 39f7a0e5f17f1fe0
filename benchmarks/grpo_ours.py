"""One run of this project's GRPO for benchmarks/grpo.py: prints a JSON line of figures. Not to be run by itself."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch

from lit_posttrain import GRPO, EngineSpec, ModelSpec, Phases, PromptData, Sampling
from lit_posttrain.rewards import FunctionReward
from lit_posttrain.runtime import quiet_libraries


def digits(completions: list[str]) -> list[float]:
    """Something that differs between completions."""
    return [sum(c.isdigit() for c in said) / 100 for said in completions]


class Clock(pl.Callback):
    """When steps ended, and how long their rollouts took."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.rollouts: list[float] = []
        self.tokens: list[int] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.rollouts.append(pl_module.loader.experience.stats["rollout/seconds"][0])
        self.tokens.append(sum(len(r.tokens) for one in pl_module.rollouts for r in one.tree.responses))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    quiet_libraries()
    cuda = torch.cuda.is_available()
    clock = Clock()
    module = GRPO(
        ModelSpec(options.model, dtype="bfloat16"),
        [FunctionReward(digits)],
        lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0, fused=True),
        sampling=Sampling(max_new_tokens=options.tokens),
        phases=Phases(options.group),
        engine=EngineSpec(batch_size=options.prompts * options.group),
        beta=0.04,
    )
    trainer = pl.Trainer(
        max_steps=options.steps,
        max_epochs=-1,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        accumulate_grad_batches=options.accumulate,
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = PromptData(options.data, batch_size=options.prompts, shuffle=False, cache_dir=options.cache)
    trainer.fit(module, datamodule=data)
    steps = [b - a for a, b in itertools.pairwise(clock.times)]
    updates = [step - rollout for step, rollout in zip(steps, clock.rollouts[1:], strict=True)]
    peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    figures = {
        "step_s": statistics.median(steps),
        "rollout_s": statistics.median(clock.rollouts[1:]),
        "update_s": statistics.median(updates),
        "tokens": statistics.median(clock.tokens[1:]),
        "peak_mb": peak,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
