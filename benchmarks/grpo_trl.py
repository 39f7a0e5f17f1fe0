"""One run of TRL's GRPOTrainer for benchmarks/grpo.py: prints a JSON line of figures. Not to be run by itself."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from grpo_ours import digits
from sides import WEIGHTS, now, peak_mb
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

times: list[float] = []
rollouts: list[float] = []
tokens: list[int] = []


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        times.append(now())


class Timed(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
    """With the time that generating takes, which is plain `model.generate`."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        begun = now()
        found = super()._generate_single_turn(*args, **kwargs)
        rollouts.append(now() - begun)
        tokens.append(sum(len(ids) for ids in found[0]))
        return found


def reward(completions: list[Any], **_: Any) -> list[float]:
    return digits([completion[0]["content"] for completion in completions])


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
    parser.add_argument("--precision", default="bf16-mixed")
    options = parser.parse_args()
    rows = [json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
    data = [{"prompt": [{"role": "user", "content": row["question"]}]} for row in rows]
    trainer = Timed(
        AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, WEIGHTS[options.precision])),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=options.prompts * options.group // options.accumulate,
            gradient_accumulation_steps=options.accumulate,
            num_generations=options.group,
            max_completion_length=options.tokens,
            max_steps=options.steps,
            beta=0.04,
            learning_rate=1e-6,
            bf16=options.precision == "bf16-mixed",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        callbacks=[Clock()],
    )
    trainer.train()
    steps = [b - a for a, b in itertools.pairwise(times)]
    updates = [step - rollout for step, rollout in zip(steps, rollouts[1:], strict=True)]
    figures = {
        "step_s": statistics.median(steps),
        "rollout_s": statistics.median(rollouts[1:]),
        "update_s": statistics.median(updates),
        "tokens": statistics.median(tokens[1:]),
        "peak_mb": peak_mb(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
