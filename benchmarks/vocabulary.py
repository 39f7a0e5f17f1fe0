"""Peak memory of one step must not grow with the vocabulary: 1 x 4,096 tokens, activation checkpointing.

    python benchmarks/vocabulary.py

Counts the bytes of live tensors beyond weights, gradients and optimizer state over a whole step of a small random
model, float32 and bf16-mixed; beside it the same model with transformers' own loss, which has the matrix of logits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from live_bytes import LiveBytes
from transformers import LlamaConfig

from lit_posttrain.data.store.packing import collate
from lit_posttrain.models.architectures import attention_implementation, layout_of
from lit_posttrain.models.loading import build_policy
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.ops.logprobs import TokenLogprobs
from lit_posttrain.types import Response, Tree, TreeBatch

VOCABULARIES = (49_152, 200_000)
TOKENS = 4096


def model_and_batch(vocabulary: int, tokens: int, hidden: int, layers: int) -> tuple[Policy, TreeBatch]:
    """A random Llama with activation checkpointing, and one sequence of which all tokens but the first are trained."""
    torch.manual_seed(0)
    config: Any = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=tokens,
        tie_word_embeddings=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        policy = build_policy(ModelSpec(folder, random_init=True, checkpointing=True), vocabulary)
    ids = np.random.default_rng(0).integers(0, vocabulary, tokens).astype(np.int32)
    tree = Tree(ids[:1], [Response(ids[1:], np.ones(tokens - 1, np.bool_))])
    layout = layout_of(config, "cpu", attention_implementation("auto", config, "cpu"))
    return policy, collate([tree], layout, {"tokens": tokens - 1})


def tiled_loss(policy: Policy, batch: TreeBatch) -> torch.Tensor:
    """This project's loss, with the metrics of SFT."""
    found: TokenLogprobs = policy(batch, entropy=True, correct=True)
    return found.logprobs.mean().neg()


def plain_loss(policy: Policy, batch: TreeBatch) -> torch.Tensor:
    """transformers' loss on the same tokens."""
    loss: torch.Tensor = policy.transformer(input_ids=batch.input_ids, labels=batch.input_ids, use_cache=False).loss
    return loss


def peak_beyond(
    vocabulary: int,
    loss: Callable[[Policy, TreeBatch], torch.Tensor] = tiled_loss,
    *,
    tokens: int = TOKENS,
    hidden: int = 512,
    layers: int = 6,
    mixed: bool = False,
) -> float:
    """MB alive at once in the second step beyond weights, gradients and optimizer state."""
    policy, batch = model_and_batch(vocabulary, tokens, hidden, layers)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)

    live = LiveBytes(list(policy.parameters()))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            value = loss(policy, batch)
        live.backward = True
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        live.backward = False

    step()
    with live:
        step()
    return live.peak / 1e6


def main() -> None:
    print("| loss | precision | " + " | ".join(f"{v:,} tokens" for v in VOCABULARIES) + " | apart |")
    print("|---|---|" + "---|" * (len(VOCABULARIES) + 1))
    for name, loss in (("lit_posttrain", tiled_loss), ("transformers", plain_loss)):
        for mixed in (False, True):
            small, large = (peak_beyond(vocabulary, loss, mixed=mixed) for vocabulary in VOCABULARIES)
            precision = "bf16-mixed" if mixed else "float32"
            print(f"| {name} | {precision} | {small:.0f} MB | {large:.0f} MB | {large / small - 1:.1%} |", flush=True)


if __name__ == "__main__":
    main()
