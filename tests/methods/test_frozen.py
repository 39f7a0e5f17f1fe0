"""A frozen model beside the policy: its log-probs are those of plain transformers, in whatever rows it reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import build, comparisons
from helpers import tiny
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lit_posttrain import LoRASpec, ModelSpec, Tree
from lit_posttrain.core.divergence import divergence_term
from lit_posttrain.core.frozen import AdapterOff, FrozenModel, FrozenPart
from lit_posttrain.data.store.packing import collate

# one that reads the policy's rows, and one that reads one sequence a row
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
}


def other(kind: str, folder: Path) -> Path:
    torch.manual_seed(7)
    config = CONFIG_MAPPING[kind](vocab_size=512, max_position_embeddings=512, pad_token_id=0, **KINDS[kind])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def trees(folder: Path) -> list[Tree]:
    """Pairs, some with a prompt that is trained on too, and `expected`: the log-probs of all trained tokens, one
    sequence at a time."""
    model, found = AutoModelForCausalLM.from_pretrained(folder).eval(), comparisons(6)
    for row, tree in enumerate(found):
        tree.prompt_loss_mask = np.ones(len(tree.prompt), np.bool_) if row % 2 else None
        values: list[torch.Tensor] = []
        for k, response in enumerate(tree.responses):
            ids = torch.from_numpy(np.concatenate([tree.prompt, response.tokens])).long()
            with torch.no_grad():
                logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            values.append(logprobs[0 if row % 2 and k == 0 else len(tree.prompt) - 1 :])
        tree.per_target = {"expected": torch.cat(values).numpy()}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_its_log_probs_are_those_of_transformers(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    module = build("sft", tiny_model)
    part = FrozenPart(module, ModelSpec(str(other(kind, tmp_path / kind))), "teacher")
    module.configure_model()
    assert (part.model.layout is None) is (kind == "llama")
    batch = collate(trees(tmp_path / kind), module.layout, {})
    found = part.model(batch, entropy=True)
    torch.testing.assert_close(found.logprobs, batch.per_target["expected"], atol=1e-5, rtol=1e-5)
    assert found.entropy is not None
    assert found.entropy.shape == found.logprobs.shape
    assert not found.logprobs.requires_grad
    held = module.frozen_weights["teacher"]
    assert sum(weight.numel() for weight in held) == sum(p.numel() for p in part.model.model.parameters()) > 0
    assert not any(weight.requires_grad for weight in held)
    assert not any("teacher" in name for name in module.state_dict()), "it is neither trained nor saved"


def test_a_copy_of_the_policy_says_what_the_policy_says(tiny_model: Path) -> None:
    module = build("dpo", tiny_model)
    module.configure_model()
    batch = collate(comparisons(6), module.layout, {})
    with module.eval_no_grad() as policy:
        own = policy(batch).logprobs
    assert torch.equal(FrozenModel.copy_of(module).logprobs(batch), own)


def test_a_policy_without_its_adapters_is_what_they_stand_on(tiny_model: Path) -> None:
    """Its log-probs, and its divergence from the policy, within whose own pass it is run."""
    module, bare = build("sft", tiny_model, lora=LoRASpec(r=4)), build("sft", tiny_model)
    module.configure_model()
    bare.configure_model()
    for name, parameter in module.language_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    batch = collate(comparisons(6), module.layout, {})
    off, base = AdapterOff(module), FrozenModel(module, bare.language_model)
    torch.testing.assert_close(off.logprobs(batch), base.logprobs(batch))
    found, expected = (divergence_term(module, teacher, batch, beta=1.0).total for teacher in (off, base))
    assert expected > 1
    torch.testing.assert_close(found, expected)
    found.backward()
    gradients = [p.grad for p in module.language_model.parameters() if p.requires_grad]
    assert any(g is not None and g.any() for g in gradients)
    assert module.language_model.training
