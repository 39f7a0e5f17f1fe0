"""One run of TRL's SFTTrainer for benchmarks/sft.py: prints a JSON line of figures. Not meant to be run by itself."""

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
from sides import WEIGHTS, now, peak_mb
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

times: list[float] = []


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        times.append(now())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--pack", action="store_true")
    options = parser.parse_args()
    rows = [json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
    data = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in rows
    ]
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, WEIGHTS[options.precision])),
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=2 if options.pack else options.batch,  # 2 packed rows of 1,024: as many tokens
            packing=options.pack,
            max_length=1024,
            max_steps=options.steps,
            bf16=options.precision == "bf16-mixed",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            learning_rate=1e-6,
        ),
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        callbacks=[Clock()],
    )
    trainer.train()
    logs = [h for h in trainer.state.log_history if "loss" in h]
    steps = [b - a for a, b in itertools.pairwise(times)]
    figures = {
        "tokens_per_s": (logs[-1]["num_tokens"] - logs[0]["num_tokens"]) / (times[-1] - times[0]),
        "median_step_s": statistics.median(steps),
        "peak_mb": peak_mb(),
        "losses": [round(float(h["loss"]), 4) for h in logs],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
