"""Peak memory of one step must not grow with the vocabulary: 1 x 4,096 tokens, activation checkpointing.

    python benchmarks/vocabulary.py

Each vocabulary is measured in a process of its own. From the peak are taken what must be there: weights, gradients and
optimizer state. What remains are activations and temporaries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

VOCABULARIES = (49_152, 200_000)
TOKENS = 4096
HIDDEN, LAYERS = 512, 6
# every freed tensor goes back to the system at once, so that resident memory is what is in use
GIVE_BACK = "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536"


def measure(vocabulary: int) -> dict[str, float]:
    """Peak resident memory of a step beyond weights, gradients and optimizer state, in MB."""
    import numpy as np
    import psutil
    import torch
    from transformers import LlamaConfig

    from lit_posttrain.data.packing import collate
    from lit_posttrain.models.architectures import attention_implementation, layout_of
    from lit_posttrain.models.loading import build_policy
    from lit_posttrain.models.spec import ModelSpec
    from lit_posttrain.types import Response, Tree

    torch.manual_seed(0)
    config: Any = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        policy = build_policy(ModelSpec(folder, random_init=True, checkpointing=True), vocabulary)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)
    random = np.random.default_rng(0)
    tokens = random.integers(0, vocabulary, TOKENS).astype(np.int32)
    tree = Tree(tokens[:1], [Response(tokens[1:], np.ones(TOKENS - 1, np.bool_))])
    layout = layout_of(config, "cpu", attention_implementation("auto", config, "cpu"))
    batch = collate([tree], layout, {"tokens": TOKENS - 1})

    def step() -> None:
        policy(batch, entropy=True, correct=True).logprobs.mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    process, peak, done = psutil.Process(), 0, False
    base = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    step()
    done = True
    thread.join()
    weights = sum(p.numel() * p.element_size() for p in policy.parameters()) / 1e6
    # before the step only weights and the two AdamW states are held; the step adds gradients and the rest
    return {"vocabulary": vocabulary, "weights_mb": weights, "beyond_mb": (peak - base) / 1e6 - weights}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    found = []
    for vocabulary in VOCABULARIES:
        command = [sys.executable, str(Path(__file__)), str(vocabulary)]
        environment = {**os.environ, "GLIBC_TUNABLES": GIVE_BACK}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    small, large = (f["beyond_mb"] for f in found)
    print(f"activations and temporaries: {small:.0f} MB and {large:.0f} MB, {abs(large / small - 1):.1%} apart")


if __name__ == "__main__":
    main()
