"""Adapter folders that peft wrote, here or elsewhere: merged into the model that peft makes of them, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.cli import one_line
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GPT2Config

from lit_posttrain import ModelSpec, PostTrainError
from lit_posttrain.cli.main import main
from lit_posttrain.models.adapter_folders import merged_folder
from lit_posttrain.models.loading import build_policy
from lit_posttrain.models.precision import compute_in_float32, keep_scales
from lit_posttrain.models.restore import restore

IDS = torch.arange(3, 40)[None]
TIED = ("model.embed_tokens", "lm_head")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return torch.as_tensor(model.eval()(IDS).logits.float())


def adapt(base: Path, folder: Path, tokens: int = 0, **lora: Any) -> Path:
    """Large adapters on the model at `base`, as peft writes them; tokens: to add first."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    if tokens:
        tokenizer.add_tokens([f"<|new{n}|>" for n in range(tokens)])
        model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(1)
    options: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    adapted = get_peft_model(model, LoraConfig(**options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def packed(base: Path, folder: Path, **how: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=BitsAndBytesConfig(**how))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
ROADS: dict[str, Callable[[Path, Path], Path]] = {
    "dense": lambda base, to: base,
    "4 bits": lambda base, to: packed(base, to, **FOUR),
    "8 bits": lambda base, to: packed(base, to, load_in_8bit=True),
}
TARGETS: dict[str, dict[str, Any]] = {
    "all-linear": {},
    "dora": {"use_dora": True},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "saved whole": {"modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("road", ROADS)
def test_the_merged_model_is_the_one_that_peft_makes(road: str, targets: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = adapt(ROADS[road](tiny_model, tmp_path / "base"), tmp_path / "adapter", **TARGETS[targets])
    model: Any = AutoPeftModelForCausalLM.from_pretrained(folder)
    keep_scales(model)
    compute_in_float32(model)
    expected = logits(model)
    found = restore(str(folder)).policy.transformer
    assert getattr(found, "hf_quantizer", None) is None
    # LLM.int8 rounds what it computes with
    close = 0.1 if road == "8 bits" else 1e-4
    assert float((logits(found) - expected).abs().max()) < close * float(expected.abs().max())


def test_a_base_that_keeps_matrices_the_other_way_round(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    folder = adapt(packed(tmp_path / "base", tmp_path / "packed", **FOUR), tmp_path / "adapter")
    model: Any = AutoPeftModelForCausalLM.from_pretrained(folder)
    keep_scales(model)
    compute_in_float32(model)
    assert float((logits(restore(str(folder)).policy.transformer) - logits(model)).abs().max()) < 1e-4


def test_a_base_that_cannot_be_unpacked(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = adapt(packed(tiny_model, tmp_path / "base", **FOUR), tmp_path / "adapter")
    monkeypatch.setattr("lit_posttrain.models.merging.quantizer", lambda model: "gptq")
    with pytest.raises(PostTrainError, match="quantized with gptq, which cannot be unpacked"):
        restore(str(folder))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CHANGES: dict[str, Callable[[Path, Path], Any]] = {
    "another scale": lambda folder, base: edit(folder / "adapter_config.json", lora_alpha=64),
    "scaled by the root of r": lambda folder, base: edit(folder / "adapter_config.json", use_rslora=True),
    "another chat template": lambda folder, base: (folder / "chat_template.jinja").write_text("new"),
    "another config of the base": lambda folder, base: edit(base / "config.json", rms_norm_eps=0.1),
    "other weights of the base": lambda folder, base: tiny.save_model(base, seed=3),
    "another base": lambda folder, base: edit(
        folder / "adapter_config.json", base_model_name_or_path=str(tiny.save_model(base.parent / "other", seed=4))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_has_changed_is_merged_again(change: str, tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base")
    folder = adapt(base, tmp_path / "adapter")
    before = merged_folder(folder)
    assert merged_folder(folder) == before
    CHANGES[change](folder, base)
    after = merged_folder(folder)
    assert after != before
    moved = logits(AutoModelForCausalLM.from_pretrained(after)) - logits(AutoModelForCausalLM.from_pretrained(before))
    template = AutoTokenizer.from_pretrained(after).chat_template
    assert float(moved.abs().max()) > 1e-3 or template == "new"


def test_embeddings_of_new_tokens_come_with_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    folder = adapt(tiny_model, tmp_path / "adapter", tokens=200)
    held = load_file(folder / "adapter_model.safetensors")
    embeddings = held["base_model.model.model.embed_tokens.weight"]
    found = restore(str(folder))
    assert len(found.tokenizer) == len(embeddings) > 512
    assert torch.equal(found.policy.transformer.get_input_embeddings().weight, embeddings)
    save_file({n: v for n, v in held.items() if "lora_" in n}, folder / "adapter_model.safetensors")
    with pytest.raises(PostTrainError, match=r"on a base that has 512, without the embeddings .*model.embed_tokens"):
        restore(str(folder))


def test_a_head_of_its_own_is_asked_for_too(tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base", tie_word_embeddings=False)
    folder = adapt(base, tmp_path / "adapter", tokens=200)
    held = load_file(folder / "adapter_model.safetensors")
    head = held.pop("base_model.model.lm_head.weight")
    assert torch.equal(restore(str(folder)).policy.transformer.get_output_embeddings().weight, head)
    save_file(held, folder / "adapter_model.safetensors")
    with pytest.raises(PostTrainError, match=r"without the embeddings of the new ones \(lm_head\)"):
        restore(str(folder))


def rewrite(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        held = load_file(folder / "adapter_model.safetensors")
        change(held)
        save_file(held, folder / "adapter_model.safetensors")

    return apply


LAYER = "base_model.model.model.layers.0.mlp.up_proj."
SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one layer more": (
        rewrite(lambda s: s.update({LAYER.replace("s.0", "s.7") + "lora_A.weight": torch.zeros(4, 64)})),
        "1 weights have no place in the model, such as .*layers.7",
    ),
    "a tensor of its own": (
        rewrite(lambda s: s.update({"base_model.model.extra.weight": torch.zeros(3)})),
        "1 weights have no place in the model, such as base_model.model.extra.weight",
    ),
    "a score": (
        rewrite(lambda s: s.update({"base_model.model.score.weight": torch.zeros(1, 64)})),
        "such as base_model.model.score.weight",
    ),
    "two that are tied": (
        rewrite(
            lambda s: s.update(
                {f"base_model.model.{n}.weight": torch.full((512, 64), float(i)) for i, n in enumerate(TIED)}
            )
        ),
        "1 weights have no place",
    ),
    "a weight is missing": (rewrite(lambda s: s.pop(f"{LAYER}lora_A.weight")), "1 weights are missing"),
    "not a number": (rewrite(lambda s: s[f"{LAYER}lora_B.weight"].fill_(float("nan"))), "are NaN or infinite"),
    "a config that is cut short": (
        lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LO'),
        "adapter_config.json: not JSON",
    ),
    "a config that is none": (
        lambda folder: (folder / "adapter_config.json").write_text("[]"),
        "adapter_config.json: a list",
    ),
    "a note that is cut short": (lambda folder: (folder / "base.json").write_text(""), "base.json: not JSON"),
    "an unknown kind": (
        lambda folder: edit(folder / "adapter_config.json", peft_type="NEWEST"),
        "the adapter cannot be read: .*NEWEST",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_folder_that_is_not_as_it_was_written(case: str, tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    folder = adapt(tiny_model, tmp_path / "adapter")
    spoil, told = SPOILT[case]
    spoil(folder)
    with pytest.raises(PostTrainError, match=told) as problem:
        restore(str(folder))
    assert "\n" not in str(problem.value)
    assert str(folder) in str(problem.value)
    assert not list(cache.rglob("config.json")), "nothing is kept"


def test_adapters_that_no_model_can_take_in(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        tmp_path / "a"
    )
    shutil.copy(tiny_model / "tokenizer.json", tmp_path / "a")
    with pytest.raises(PostTrainError, match="an adapter of the kind PROMPT_TUNING, which cannot be merged"):
        restore(str(tmp_path / "a"))
    assert not list(cache.rglob("config.json"))


@pytest.mark.parametrize("tied", [True, False])
def test_repeated_layers(tied: bool, tmp_path: Path) -> None:
    """They share their weights until they are merged, and are saved apart; embedding and head stay as they were."""
    base = tiny.save_model(tmp_path / "base", tie_word_embeddings=tied)
    folder = adapt(base, tmp_path / "adapter", layer_replication=[[1, 2], [0, 2], [0, 1]])
    expected = logits(AutoPeftModelForCausalLM.from_pretrained(folder))
    found = restore(str(folder)).policy.transformer
    assert found.config.num_hidden_layers == 4
    assert found.config.tie_word_embeddings == tied
    assert float((logits(found) - expected).abs().max()) < 1e-4


def test_repeated_layers_over_a_quantized_base(tiny_model: Path, tmp_path: Path) -> None:
    folder = adapt(packed(tiny_model, tmp_path / "base", **FOUR), tmp_path / "adapter", layer_replication=[[0, 2]] * 2)
    with pytest.raises(PostTrainError, match="adapter: adapters with layer_replication cannot be merged into a quant"):
        restore(str(folder))


def test_biases_that_the_base_has_no_place_for(tiny_model: Path, tmp_path: Path, cache: Path) -> None:
    folder = adapt(tiny_model, tmp_path / "adapter", lora_bias=True)
    with pytest.raises(PostTrainError, match=r"cannot be merged into the base: .*lora_bias=True") as problem:
        restore(str(folder))
    assert str(problem.value).startswith(f"model path {folder}: ")
    assert "\n" not in str(problem.value)
    assert not list(cache.rglob("config.json"))


def test_how_to_generate_comes_with_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    folder = adapt(tiny_model, tmp_path / "adapter")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], "temperature": 0.6}))
    found = restore(str(folder))
    assert found.eos_ids == [2, 5]
    assert found.policy.transformer.generation_config.temperature == 0.6


def test_an_adapter_is_trained_on_as_any_model(tiny_model: Path, tmp_path: Path) -> None:
    folder = adapt(packed(tiny_model, tmp_path / "base", **FOUR), tmp_path / "adapter")
    assert all(p.dtype == torch.float32 for p in build_policy(ModelSpec(str(folder)), 400).parameters())


def test_a_base_whose_code_is_trusted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The early check of the commands does not load the base, without the option's value."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base, folder = tiny.with_own_code(tiny_model, tmp_path / "remote"), adapt(tiny_model, tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    asked = ["generate", "--model", str(folder), "--prompt", "what is it", "--max_new_tokens", "2"]
    assert main([*asked, "--trust_remote_code", "true"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "what is it"
    assert main(asked) == 2
    assert f"model path {folder}: the base of the adapter: " in one_line(capsys)
