"""One run of TRL's DPOTrainer for benchmarks/dpo.py: prints a JSON line of figures. Not meant to be run by itself."""

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
from sides import now, peak_mb
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

times: list[float] = []


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        times.append(now())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        times.append(now())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--precision", default="bf16-mixed", help="of the arithmetic")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--warmup", type=float, default=0.0, help="share of the steps")
    parser.add_argument("--save", help="folder for the trained model")
    options = parser.parse_args()
    rows = [json.loads(line) for line in Path(options.data).read_text(encoding="utf-8").splitlines()]
    start = now()
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=options.batch,
            max_length=2048,
            max_steps=options.steps,
            beta=0.1,
            precompute_ref_log_probs=options.cached,
            bf16=options.precision == "bf16-mixed",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            learning_rate=options.lr,
            warmup_steps=options.warmup,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        callbacks=[Clock()],
    )
    trainer.train()
    if options.save:
        trainer.save_model(options.save)
    logs = [h for h in trainer.state.log_history if "loss" in h]
    step = statistics.median(b - a for a, b in itertools.pairwise(times[1:]))
    figures = {
        "rows_per_s": options.batch / step,
        "median_step_s": step,
        "before_s": times[0] - start,
        "peak_mb": peak_mb(),
        "losses": [round(float(h["loss"]), 4) for h in logs],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
