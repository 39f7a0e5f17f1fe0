"""Packed trees give what plain transformers gives for the separate sequences: log-probs, loss and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lit_posttrain.data.store.packing import collate
from lit_posttrain.models.architectures import PROVEN, attention_implementation, layout_of
from lit_posttrain.models.loading import build_policy, load_config
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.types import Response, RowLayout, Tree

VOCABULARY = 101
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4}
SPECIFIC: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.3},
    "gemma2": {"sliding_window": 7, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "n_inner": 48},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "embedding_multiplier": 5.0},
    "mistral": {"sliding_window": 7},
    "mixtral": MOE,
    "phi3": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3_moe": MOE,
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
}


def tiny(kind: str) -> Any:
    torch.manual_seed(1)
    config = CONFIG_MAPPING[kind](**{**COMMON, **SPECIFIC.get(kind, {})})
    attention = "eager" if PROVEN[kind].soft_capped_attention else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():  # random enough that every mistake shows
        torch.nn.init.normal_(parameter, std=0.15) if parameter.dim() > 1 else parameter.data.add_(
            0.1 * torch.randn_like(parameter)
        )
    return model.eval()  # no dropout; gradients flow all the same


def make_trees(ks: list[int]) -> list[Tree]:
    random = np.random.default_rng(0)
    trees = []
    for k in ks:
        responses = []
        for length in random.integers(3, 14, size=k):
            counted = random.random(length) < 0.7
            counted[0] = True
            responses.append(Response(random.integers(3, VOCABULARY, length).astype(np.int32), counted))
        prompt = random.integers(3, VOCABULARY, random.integers(8, 20)).astype(np.int32)
        trees.append(Tree(prompt, responses))
    return trees


def separate(model: Any, trees: list[Tree]) -> Tensor:
    """Log-probs of the trained tokens by one plain forward per sequence."""
    found = []
    for tree in trees:
        for response in tree.responses:
            ids = torch.tensor(np.concatenate([tree.prompt, response.tokens])).long()[None]
            logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            picked = logps.gather(1, ids[0, 1:, None])[len(tree.prompt) - 1 :, 0]
            found.append(picked[torch.from_numpy(response.loss_mask)])
    return torch.cat(found)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("kind", sorted(PROVEN))
def test_trees_equal_separate_sequences(kind: str, shared: bool) -> None:
    model = tiny(kind)
    trees = make_trees([1, 2, 4, 2, 1])
    # free attention makes long rows pay, so that every row holds several trees
    layout = RowLayout(shared, True, attention_cost=0.0, multiple=8)
    batch = collate(trees, layout, {"tokens": 1.0})
    assert (batch.tree_ids == -1).any(), "the batch has padding"
    assert batch.branch_ids.max() == (4 if shared else 1)
    _compare(model, trees, batch)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("kind", sorted(kind for kind, a in PROVEN.items() if not a.soft_capped_attention))
def test_flat_rows_equal_separate_sequences(kind: str, shared: bool) -> None:
    model = tiny(kind)
    implementation = attention_implementation("auto", model.config, "cpu")
    layout = layout_of(model.config, "cpu", implementation)
    assert layout.flat
    trees = make_trees([1, 2, 4, 2, 1])
    if not shared:
        trees = [Tree(t.prompt, [r]) for t in trees for r in t.responses]
    batch = collate(trees, layout, {"tokens": 1.0})
    assert batch.input_ids.shape[0] == 1
    assert (batch.tree_ids >= 0).all()
    _compare(model, trees, batch, implementation)


def test_a_vision_language_model_is_not_taken_for_its_text_half(tmp_path: Path) -> None:
    sizes = {**COMMON, **SPECIFIC["gemma3_text"], "sliding_window": 64}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CONFIG_MAPPING["gemma3"](text_config=sizes, vision_config={**vision, "image_size": 28, "patch_size": 14})
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    spec = ModelSpec(str(tmp_path))
    loaded = load_config(spec)
    layout = layout_of(loaded, "cpu", attention_implementation("auto", loaded, "cpu"))
    policy = build_policy(spec, VOCABULARY).eval()
    trees = make_trees([2, 2])
    batch = collate(trees, layout, {"tokens": 1.0})
    actual = policy(batch).logprobs
    torch.testing.assert_close(actual, separate(policy.transformer, trees), atol=1e-5, rtol=1e-5)
    packed = collate(trees, RowLayout(flat=True), {"tokens": 1.0})
    with pytest.raises(ValueError, match="not proven for packed rows"):
        policy(packed)


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_unlisted_architectures_fall_back_to_plain_rows(kind: str) -> None:
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[kind](**sizes, n_head=4) if kind == "bloom" else CONFIG_MAPPING[kind](**sizes, state_size=4)
    )
    trees = make_trees([1, 2, 3])
    layout = layout_of(model.config, "cpu", "eager")
    assert not layout.shared
    assert not layout.packed
    _compare(model, trees, collate(trees, layout, {"tokens": 1.0}))


def _compare(model: Any, trees: list[Tree], batch: Any, implementation: str | None = None) -> None:
    expected = separate(model, trees)
    weights = torch.linspace(0.5, 2.0, len(expected))
    (expected * weights).sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if implementation is not None:
        model.set_attn_implementation(implementation)
    actual = Policy(model)(batch).logprobs
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    loss, loss_expected = -actual.mean(), -expected.mean()
    torch.testing.assert_close(loss, loss_expected, atol=1e-5, rtol=1e-5)
    (actual * weights).sum().backward()
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, parameter in model.named_parameters():
        if name in wanted:
            difference = float((parameter.grad - wanted[name]).abs().max())
            assert difference <= 1e-5 * max(scale, 1.0), f"{name}: gradient off by {difference} (largest {scale})"
