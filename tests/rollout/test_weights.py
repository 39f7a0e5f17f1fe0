"""The weights that another engine gets, against peft's own merge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import tiny
from peft import PeftModel
from safetensors.torch import load_file

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.loading import build_policy
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.spec import LoRASpec, ModelSpec
from lit_posttrain.rollout.weights import check_transferable, checksum_of, dense_weights, parts, written


def adapted(path: Path, rslora: bool = False, quantization: Literal["nf4"] | None = None) -> Policy:
    """A policy whose adapters do something."""
    lora = LoRASpec(r=4, target_modules=["q_proj", "down_proj"], rslora=rslora)
    policy = build_policy(ModelSpec(str(path), lora=lora, quantization=quantization), 0)
    for name, value in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value, std=0.1)
    return policy


def test_all_weights_are_those_of_a_checkpoint(tiny_model: Path) -> None:
    policy = build_policy(ModelSpec(str(tiny_model)), 0)
    plain = dict(policy.transformer.named_parameters())
    found = dict(dense_weights(policy))
    assert found.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in found.items())
    twice = dict(dense_weights(policy, tied_twice=True))
    assert twice.keys() - found.keys() == {"lm_head.weight"} - plain.keys()


@pytest.mark.parametrize("rslora", [False, True])
def test_adapters_are_added_in_as_peft_does(tiny_model: Path, rslora: bool) -> None:
    policy = adapted(tiny_model, rslora)
    found = dict(dense_weights(policy))
    assert isinstance(policy.model, PeftModel)
    merged = policy.model.merge_and_unload(safe_merge=True)
    plain = dict(merged.named_parameters())
    assert found.keys() == plain.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, plain[name], atol=1e-6, rtol=1e-6)
    base = dict(build_policy(ModelSpec(str(tiny_model)), 0).transformer.named_parameters())
    moved = {name for name, value in found.items() if not torch.allclose(value, base[name], atol=1e-3)}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "down_proj"}


def test_four_bits_are_unpacked(tiny_model: Path) -> None:
    """The dense weights compute what the quantized model does."""
    policy = adapted(tiny_model, quantization="nf4")
    dense = build_policy(ModelSpec(str(tiny_model)), 0)
    dense.transformer.load_state_dict(dict(dense_weights(policy)), strict=False)
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        expected, found = policy.eval().transformer(ids).logits, dense.eval().transformer(ids).logits
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_tied_weights_go_into_one_file(tmp_path: Path) -> None:
    """Also where their type is the engine's, and nothing is copied on the way."""
    model = tiny.save_model(tmp_path / "tied", tie_word_embeddings=True)
    policy = build_policy(ModelSpec(str(model)), 0)
    (held,) = parts(dense_weights(policy, tied_twice=True), torch.float32)
    found = load_file(written(held, tmp_path))
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], policy.transformer.lm_head.weight)
    assert checksum_of(found["lm_head.weight"]) != checksum_of(found["lm_head.weight"] + 1e-6)


def test_dora_is_refused() -> None:
    with pytest.raises(PostTrainError, match="vLLM cannot have DoRA's weights"):
        check_transferable(ModelSpec("any", lora=LoRASpec(dora=True)))
    check_transferable(ModelSpec("any", lora=LoRASpec()))


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_adapters_on_a_tied_embedding_are_not_handed_over(target: str, tiny_model: Path) -> None:
    """Added into the one weight that both share, they would change the other one too."""
    policy = build_policy(ModelSpec(str(tiny_model), lora=LoRASpec(r=4, target_modules=[target])), 0)
    with pytest.raises(PostTrainError, match=f"adapters on .*{target} are not handed to vLLM"):
        dict(dense_weights(policy))
