"""TRL's GRPO on the task of configs/demo_grpo.yaml for benchmarks/grpo_learning.py. Not to be run by itself."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from learning_clock import seconds
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

BUILTIN = Path(__file__).parent.parent / "lit_posttrain" / "builtin"
NEW_TOKENS = 8


def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 for the right word, as ExactMatch has it."""
    return [float(said[0]["content"].strip() == right) for said, right in zip(completions, answer, strict=True)]


class HeldOut(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Writes the reward of every step, and every few of them that of greedy answers to held-out prompts."""

    def __init__(self, rows: list[dict[str, Any]], tokenizer: Any, every: int, budget: float, file: str) -> None:
        self.tokenizer, self.every, self.budget, self.file = tokenizer, every, budget, file
        self.answers = [row["answer"] for row in rows]
        texts = [tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in rows]
        self.given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)

    def note(self, **row: float) -> None:
        with open(self.file, "a", encoding="utf-8") as out:
            out.write(json.dumps({**row, "seconds": round(seconds(), 1)}) + "\n")

    @torch.no_grad()
    def measure(self, model: Any, step: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found = model.generate(**self.given, do_sample=False, max_new_tokens=NEW_TOKENS)
        said = self.tokenizer.batch_decode(found[:, self.given.input_ids.shape[1] :], skip_special_tokens=True)
        right = reward([[{"content": text}] for text in said], self.answers)
        self.note(step=step, held_out=sum(right) / len(right))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.measure(model, 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        if "reward" in logs:
            self.note(step=state.global_step, reward=logs["reward"])
            over = seconds() > self.budget
            if over or state.global_step % self.every == 0:
                self.measure(model, state.global_step)
            control.should_training_stop |= over


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--budget", type=float, required=True, help="seconds after which it stops")
    options = parser.parse_args()
    rows, held_out = (
        [json.loads(line) for line in (BUILTIN / name).read_text(encoding="utf-8").splitlines()]
        for name in ("demo_words.jsonl", "demo_words_heldout.jsonl")
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=NEW_TOKENS,
            max_steps=options.steps,
            loss_type="grpo",
            beta=0.0,
            top_k=0,
            learning_rate=5e-6,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            seed=options.seed,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[HeldOut(held_out, tokenizer, 10, options.budget, options.log)],
    ).train()


if __name__ == "__main__":
    main()
