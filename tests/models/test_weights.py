"""What counts as a fit of a model's files: what may be missing or left over, and what may not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from lit_posttrain import ModelSpec, PostTrainError
from lit_posttrain.models.loading import build_policy, build_scorer, build_value_model
from lit_posttrain.models.restore import restore
from lit_posttrain.models.weights import load_weights

Edit = Callable[[dict[str, Tensor]], Any]
EMBED = "model.embed_tokens.weight"


def edited(folder: Path, out: Path, edit: Edit) -> ModelSpec:
    shutil.copytree(folder, out)
    state = load_file(out / "model.safetensors")
    edit(state)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return ModelSpec(str(out))


def untied(folder: Path) -> Path:
    return tiny.save_model(folder, tie_word_embeddings=False)


FITS: dict[str, Edit] = {
    "as it was saved": lambda s: None,
    "the base model alone": lambda s: [s.update({n.removeprefix("model."): s.pop(n)}) for n in list(s)],
    "a tied head that is written too": lambda s: s.update({"lm_head.weight": s[EMBED].clone()}),
    "a tied head alone": lambda s: s.update({"lm_head.weight": s.pop(EMBED)}),
    "buffers of old checkpoints": lambda s: s.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
}


@pytest.mark.parametrize("case", FITS)
def test_what_fits(case: str, tiny_model: Path, tmp_path: Path) -> None:
    expected = build_policy(ModelSpec(str(tiny_model)), 400).state_dict()
    found = build_policy(edited(tiny_model, tmp_path / "model", FITS[case]), 400).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


MISFITS: dict[str, tuple[bool, Edit, str]] = {
    "a head that is not tied is missing": (False, lambda s: s.pop("lm_head.weight"), r"missing \(lm_head.weight\)"),
    "tied embeddings": (True, lambda s: s.pop(EMBED), rf"2 tensors of \d+ missing \(lm_head.weight, {EMBED}\)"),
    "a tied head of its own": (
        True,
        lambda s: s.update({"lm_head.weight": s[EMBED] + 1}),
        "tie_word_embeddings true.*two different matrices",
    ),
    "another vocabulary": (
        True,
        lambda s: s.update({EMBED: s[EMBED][:500]}),
        r"\[500, 64\], the model has \[512, 64\]",
    ),
    "adapters that were not merged": (
        True,
        lambda s: s.update({"model.layers.0.mlp.up_proj.lora_A.default.weight": torch.zeros(4, 64)}),
        "merge them into the model",
    ),
    "a value head": (True, lambda s: s.update({"v_head.summary.weight": torch.zeros(1, 64)}), "unknown .*v_head"),
    "more than can be listed": (
        True,
        lambda s: [s.pop(n) for n in list(s) if "mlp" in n],
        r"6 tensors of \d+ missing \(.*, \.\.\.\)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit(case: str, tmp_path: Path) -> None:
    tied, edit, told = MISFITS[case]
    folder = tiny.save_model(tmp_path / "whole", tie_word_embeddings=tied)
    spec = edited(folder, tmp_path / "model", edit)
    with pytest.raises(PostTrainError, match=told) as problem:
        build_policy(spec, 400)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("build", [build_scorer, build_value_model])
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_gets_a_new_score_head(build: Any, tied: bool, tmp_path: Path) -> None:
    """Its own head is left over and the score is missing; nothing else may be."""
    whole = tiny.save_model(tmp_path / "whole", tie_word_embeddings=tied)
    assert build(ModelSpec(str(whole)), 400).transformer.score.weight.std() > 0.05
    spec = edited(whole, tmp_path / "norm", lambda s: s.pop("model.norm.weight"))
    with pytest.raises(PostTrainError, match=r"1 tensor of \d+ missing \(model.norm.weight\)"):
        build(spec, 400)


def test_a_reward_model_without_its_score_is_no_reward_model(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny.llama_config(num_labels=1))
    model.save_pretrained(tmp_path / "whole")
    build_scorer(ModelSpec(str(tmp_path / "whole")), 400)
    with_head = edited(
        tmp_path / "whole", tmp_path / "head", lambda s: s.update({"lm_head.weight": torch.ones(512, 64)})
    )
    build_scorer(with_head, 400)
    spec = edited(tmp_path / "whole", tmp_path / "model", lambda s: s.pop("score.weight"))
    with pytest.raises(PostTrainError, match=r"missing \(score.weight\)"):
        build_scorer(spec, 400)


SMALL = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OLD_BUFFERS = {
    "gpt2": {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)},
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    },
}


@pytest.mark.parametrize("kind", OLD_BUFFERS)
def test_buffers_that_old_checkpoints_of_an_architecture_hold(kind: str, tmp_path: Path) -> None:
    buffers = OLD_BUFFERS[kind]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).save_pretrained(tmp_path / "whole")
    spec = edited(tmp_path / "whole", tmp_path / "old", lambda s: s.update(buffers))
    build_policy(spec, 400)
    build_scorer(spec, 400)


EXPERT = "model.layers.0.block_sparse_moe.experts.1.w1.weight"


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.pop(EXPERT),
        lambda s: s.update({EXPERT: torch.zeros(3, 5)}),
        lambda s: s.update({EXPERT.replace("experts.1", "experts.4"): s[EXPERT].clone()}),
    ],
    ids=["missing", "another shape", "unknown"],
)
def test_experts_that_cannot_be_stacked(edit: Edit, tmp_path: Path) -> None:
    """transformers makes one tensor of all experts of a layer; why it could not, it only logs."""
    config = tiny.mixtral_config()
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    build_policy(ModelSpec(str(tmp_path / "whole")), 400)
    with pytest.raises(PostTrainError, match=r"model.layers.0.mlp.experts.gate_up_proj \(.*[Ss]ize") as problem:
        build_policy(edited(tmp_path / "whole", tmp_path / "model", edit), 400)
    assert "\n" not in str(problem.value)


def test_a_vision_tower_is_left_out_of_language_model_and_scorer(tmp_path: Path) -> None:
    """Qwen 3.5 is published as a vision-language model, whose language model transformers takes alone."""
    text = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    config = AutoConfig.for_model("qwen3_5_text", **text)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "whole")
    more = {"model.visual.blocks.0.norm1.weight": torch.ones(8), "mtp.fc.weight": torch.ones(8, 8)}
    spec = edited(tmp_path / "whole", tmp_path / "model", lambda s: s.update(more))
    build_policy(spec, 400)
    build_scorer(spec, 400)


def test_loading_a_state_dict_copies_nothing_that_does_not_fit() -> None:
    first, last = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    module = torch.nn.Sequential(first, last)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {name: torch.zeros_like(value) for name, value in before.items()}
    with pytest.raises(PostTrainError, match=r"x: .*1 tensor of 4 missing \(1.weight\)"):
        load_weights(module, {n: v for n, v in state.items() if n != "1.weight"}, "x")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    first.requires_grad_(False)
    load_weights(module, {n: v for n, v in state.items() if n.startswith("1.")}, "x")
    assert torch.equal(last.weight, state["1.weight"])
    with pytest.raises(PostTrainError, match=r"2 tensors of 4 missing \(0.bias, 0.weight\)"):
        load_weights(module, {n: v for n, v in state.items() if n.startswith("1.")}, "x", frozen_too=True)


def test_an_architecture_that_has_no_classifier(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("granite", **SMALL)).save_pretrained(tmp_path)
    with pytest.raises(PostTrainError, match="no sequence classifier of granite models"):
        build_scorer(ModelSpec(str(tmp_path)), 400)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert restore(str(tmp_path)).policy, "it can be used all the same"
