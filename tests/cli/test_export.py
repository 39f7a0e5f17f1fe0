"""Exported folders are what was trained, whatever was trained, and say so; nothing else is ever written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.cli import fit, one_line
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
)

from lit_posttrain import ModelSpec
from lit_posttrain.cli.main import main
from lit_posttrain.inference import export_proof
from lit_posttrain.models.precision import keep_scales, quantization_config
from lit_posttrain.models.restore import restore

IDS = torch.arange(3, 40)[None]


def moved(checkpoint: Path) -> None:
    """Make every adapter large: a wrong merge must show."""
    content = torch.load(checkpoint, weights_only=True)
    draw = torch.Generator().manual_seed(0)
    for name, value in content["state_dict"].items():
        if "lora_" in name and "magnitude" not in name:
            value.copy_(0.2 * torch.randn(value.shape, generator=draw))
    torch.save(content, checkpoint)


def trained(chats: Path, model: Path, *options: str) -> None:
    """A run of one step, its adapters large."""
    assert (
        fit(chats, model, "--name", "one", "--trainer.max_steps", "1", "--trainer.precision", "32-true", *options) == 0
    )
    for checkpoint in Path("runs/one").glob("*.ckpt"):
        moved(checkpoint)


def named(targets: Any) -> str:
    return targets if isinstance(targets, str) else json.dumps(targets)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return torch.as_tensor(model.eval()(IDS).logits.float())


TARGETS = [
    ["embed_tokens"],
    ["lm_head"],
    ["embed_tokens", "lm_head"],
    ["lm_head", "q_proj"],
    "all-linear",
]


@pytest.mark.parametrize(
    ("targets", "tied"), [*((targets, True) for targets in TARGETS), (["embed_tokens", "lm_head"], False)], ids=str
)
def test_adapters_on_any_layer_are_merged_into_what_they_changed(
    targets: Any, tied: bool, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.save_model(tmp_path / "base", tie_word_embeddings=tied)
    trained(chats, base, "--model.policy.lora.r", "4", "--model.policy.lora.target_modules", named(targets))
    expected = logits(restore("runs/one").policy.transformer)
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    assert "loaded again it gives what the trained model gives, to" in capsys.readouterr().out
    assert float((logits(AutoModelForCausalLM.from_pretrained("out")) - expected).abs().max()) < 1e-4
    on_both = bool({"embed_tokens", "lm_head"} & set(targets))
    assert json.loads(Path("out/config.json").read_text())["tie_word_embeddings"] == (tied and not on_both)
    assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
    loaded = AutoPeftModelForCausalLM.from_pretrained("adapter")
    assert float((logits(loaded) - expected).abs().max()) < 1e-4


LORA, NF4 = ["--model.policy.lora.r", "4"], ["--model.policy.quantization", "nf4"]
HALF = ["--model.policy.dtype", "bfloat16"]
KINDS: dict[str, list[str]] = {
    "full": [],
    "bf16": HALF,
    "lora": LORA,
    "lora-bf16": [*LORA, *HALF],
    "dora": [*LORA, "--model.policy.lora.dora", "true"],
    "rslora": [*LORA, "--model.policy.lora.rslora", "true"],
    "nf4": [*LORA, *NF4],
    "nf4-bf16": [*LORA, *NF4, *HALF],
    "int8": [*LORA, "--model.policy.quantization", "int8"],
    "chatml": ["--model.policy.chat_template", "chatml"],
    "grown": ["--model.policy.special_tokens", json.dumps([f"<|new{n}|>" for n in range(200)])],
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, None) for kind in KINDS), ("full", "bfloat16"), ("lora", "bfloat16"), ("nf4", "bfloat16")],
)
def test_every_kind_of_run_is_exported_as_it_was_trained(
    kind: str, dtype: str | None, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(chats, tiny_model, *KINDS[kind])
    expected = logits(restore("runs/one").policy.transformer)
    assert main(["export", "--ckpt", "runs/one", "--out", "out", *(["--dtype", dtype] if dtype else [])]) == 0
    loaded = AutoModelForCausalLM.from_pretrained("out")
    own = "bfloat16" if "bf16" in kind else "float32"
    assert loaded.dtype == getattr(torch, dtype or own)
    close = 0.1 if "bf16" in kind or kind == "int8" or dtype == "bfloat16" else 1e-4
    found = float((logits(loaded) - expected).abs().max())
    assert found < close * float(expected.abs().max()), capsys.readouterr().out
    assert len(AutoTokenizer.from_pretrained("out")) == len(restore("runs/one").tokenizer)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_adapters_are_what_peft_reads(dtype: str, chats: Path, tiny_model: Path) -> None:
    trained(chats, tiny_model, *LORA)
    expected = logits(restore("runs/one").policy.transformer)
    assert main(["export", "--ckpt", "runs/one", "--out", "out", "--adapter", "true", "--dtype", dtype]) == 0
    held = load_file("out/adapter_model.safetensors")
    assert {value.dtype for value in held.values()} == {getattr(torch, dtype)}
    assert float((logits(AutoPeftModelForCausalLM.from_pretrained("out")) - expected).abs().max()) < 0.1


def test_how_the_model_generates_is_kept(chats: Path, tmp_path: Path) -> None:
    """Also settings that transformers would not save: a temperature without do_sample."""
    base = tiny.save_model(tmp_path / "base")
    told = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "suppress_tokens": [5], "eos_token_id": [2, 7]}
    (base / "generation_config.json").write_text(json.dumps(told))
    trained(chats, base, *LORA)
    for adapter in ("false", "true"):
        assert main(["export", "--ckpt", "runs/one", "--out", adapter, "--adapter", adapter]) == 0
        found = GenerationConfig.from_pretrained(adapter)
        assert {name: getattr(found, name) for name in told} == told
        assert (found.bos_token_id, found.pad_token_id) == (1, 0)


def test_a_model_that_cannot_generate_by_itself_is_exported(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(chats, tiny_model, *LORA)
    monkeypatch.setattr(LlamaForCausalLM, "can_generate", classmethod(lambda cls: False))
    assert getattr(restore("runs/one").policy.transformer, "generation_config", None) is None
    for adapter in ("false", "true"):
        assert main(["export", "--ckpt", "runs/one", "--out", adapter, "--adapter", adapter]) == 0
        assert GenerationConfig.from_pretrained(adapter).eos_token_id == 2


@pytest.mark.parametrize(("how", "off"), [([], None), (HALF, 1e-4), (NF4, 1e-2)], ids=["float32", "bfloat16", "nf4"])
def test_how_the_base_of_an_adapter_is_loaded_is_said(
    how: list[str], off: float | None, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(chats, tiny_model, *LORA, *how)
    capsys.readouterr()
    assert main(["export", "--ckpt", "runs/one", "--out", "out", "--adapter", "true"]) == 0
    said = re.search(
        r"options that .*out/README.md shows; without them the logits differ by (\S+)", capsys.readouterr().out
    )
    assert (said is None) == (off is None)
    if said is not None and off is not None:
        expected = logits(restore("runs/one").policy.transformer)
        assert float(said[1]) > off
        plainly = logits(AutoPeftModelForCausalLM.from_pretrained("out")) - expected
        assert float(plainly.abs().max()) > off


@pytest.mark.parametrize("why", ["large", "fails"])
def test_no_export_fails_for_a_figure(
    why: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much an adapter changes over another base is only said: a large base is not loaded once more for it."""
    trained(chats, tiny_model, *LORA, *NF4)
    whole, asked = export_proof.load_adapter, []

    def fails(*arguments: Any, as_trained: bool = True) -> Any:
        if as_trained:
            return whole(*arguments)
        asked.append(Path("out/adapter_model.safetensors").exists())
        raise MemoryError

    monkeypatch.setattr("lit_posttrain.inference.export.load_adapter", fails)
    if why == "large":
        monkeypatch.setattr("lit_posttrain.inference.export._QUICK_BYTES", 1000)
    capsys.readouterr()
    assert main(["export", "--ckpt", "runs/one", "--out", "out", "--adapter", "true"]) == 0
    assert asked == ([] if why == "large" else [True]), "once the folder is in place"
    assert "out/README.md shows; without them the logits differ\n" in capsys.readouterr().out
    assert AutoPeftModelForCausalLM.from_pretrained("out") is not None


def test_an_adapter_on_an_adapter_folder_brings_its_base(
    chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    trained(chats, tiny_model, *LORA)
    assert main(["export", "--ckpt", "runs/one", "--out", "first", "--adapter", "true"]) == 0
    shutil.rmtree("runs")
    trained(chats, Path("first"), *LORA)
    expected = logits(restore("runs/one").policy.transformer)
    assert main(["export", "--ckpt", "runs/one", "--out", "second", "--adapter", "true"]) == 0
    shutil.rmtree(tmp_path / "cache")
    assert float((logits(AutoPeftModelForCausalLM.from_pretrained("second")) - expected).abs().max()) < 1e-4
    assert "trained from `first`" in Path("second/README.md").read_text()


def test_a_wrong_folder_is_refused_and_nothing_is_left(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(chats, tiny_model, "--model.policy.lora.r", "4")
    whole = export_proof.load_model

    def spoilt(*arguments: Any) -> Any:
        model = whole(*arguments)
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3] += 0.1
        return model

    monkeypatch.setattr("lit_posttrain.inference.export.load_model", spoilt)
    before = set(Path().iterdir())
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 2
    assert "logits differ by" in one_line(capsys)
    assert set(Path().iterdir()) == before


def test_an_ordinary_end_token_is_refused_with_what_to_do(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(chats, tiny_model, "--model.policy.eos", json.dumps(["x"]))
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 2
    told = one_line(capsys)
    assert "the tokenizer cannot be exported with the end token 'x' (--model.policy.eos), an ordinary token" in told
    assert "for an export train with a special token, which --model.policy.special_tokens can add" in told
    assert not Path("out").exists()


@pytest.mark.parametrize("quantized", [False, True])
def test_an_adapter_over_a_gguf_file_brings_its_base(
    quantized: bool, chats: Path, tiny_model: Path, tmp_path: Path
) -> None:
    base = tiny.save_gguf(tiny_model, tmp_path / "tiny.gguf")
    trained(chats, base, *KINDS["nf4" if quantized else "lora"])
    expected = logits(restore("runs/one").policy.transformer)
    assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
    base.unlink()
    options = {"quantization_config": quantization_config(ModelSpec("any", quantization="nf4"))} if quantized else {}
    model = AutoPeftModelForCausalLM.from_pretrained("adapter", **options)
    keep_scales(model)
    assert float((logits(model) - expected).abs().max()) < 1e-4
    assert str(tmp_path) not in Path("adapter/README.md").read_text()


def test_an_adapter_names_a_base_that_peft_finds_from_anywhere(
    chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save_model(tmp_path / "base")
    trained(chats, Path("base"), "--model.policy.lora.r", "4")
    expected = logits(restore("runs/one").policy.transformer)
    assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
    card = Path("adapter/README.md").read_text()
    assert str(tmp_path) not in card
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert float((logits(AutoPeftModelForCausalLM.from_pretrained("../adapter")) - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["full", "lora", "nf4", "bf16"])
def test_a_reward_model_is_exported_as_it_was_trained(kind: str, chats: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no " * (1 + i % 5)} for i in range(16)]
    Path("pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = ["--config", "reward.yaml", "--data.path", "pairs.jsonl", "--trainer.max_steps", "1", "--name", "one"]
    options += ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled", "--trainer.accelerator", "cpu"]
    assert main(["fit", *options, *KINDS[kind]]) == 0
    for checkpoint in Path("runs/one").glob("*.ckpt"):
        moved(checkpoint)
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    loaded = AutoModelForSequenceClassification.from_pretrained("out", dtype=torch.float32).eval()
    scorer = restore("runs/one").scorer.transformer
    with torch.no_grad():
        hidden = scorer.base_model(input_ids=IDS).last_hidden_state[:, -1]
        expected = float(scorer.score(hidden).float())
        found = float(loaded(input_ids=IDS).logits)
    assert found == pytest.approx(expected, abs=0.02 if kind == "bf16" else 1e-4)


def test_weights_that_a_type_cannot_hold_are_refused(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.save_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e7)
    model.save_pretrained(base)
    trained(chats, base)
    assert main(["export", "--ckpt", "runs/one", "--out", "out", "--dtype", "float16"]) == 2
    assert "choose another --dtype" in one_line(capsys)
    assert not Path("out").exists()


def test_an_adapter_folder_is_a_model_for_every_command(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.save_model(tmp_path / "base")
    trained(chats, base, *LORA, "--model.policy.lora.target_modules", '["embed_tokens", "q_proj"]')
    expected = logits(restore("runs/one").policy.transformer)
    assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
    assert float((logits(restore("adapter").policy.transformer) - expected).abs().max()) < 1e-4
    ask = ["generate", "--model", "adapter", "--prompt", "what is 3", "--max_new_tokens", "2"]
    assert main(ask) == 0
    assert fit(chats, Path("adapter"), "--name", "two", "--trainer.max_steps", "1", *LORA) == 0, "it is trained on"
    capsys.readouterr()
    tiny.save_model(base, seed=1)
    assert main(ask) == 2
    assert "adapters were trained on another model" in one_line(capsys)
    assert fit(chats, Path("adapter"), "--name", "three", "--trainer.max_steps", "1") == 2


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "without adapter_model.safetensors"),
        (lambda folder: rename_weights(folder), "weights are missing"),
        (lambda folder: edit_base(folder, None), "names no base model"),
        (lambda folder: edit_base(folder, "/nowhere/at/all"), "the base of the adapter: model path /nowhere/at/all"),
    ],
)
def test_an_adapter_that_is_none_is_one_line(
    spoil: Any, told: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(chats, tiny_model, *LORA)
    assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
    spoil(Path("adapter"))
    capsys.readouterr()
    assert main(["generate", "--model", "adapter", "--prompt", "what is 3"]) == 2
    assert told in one_line(capsys)


def rename_weights(folder: Path) -> None:
    found = load_file(folder / "adapter_model.safetensors")
    found = {name.replace("up_proj", "upward_proj"): value for name, value in found.items()}
    save_file(found, folder / "adapter_model.safetensors")


def edit_base(folder: Path, name: str | None) -> None:
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": name}))


@pytest.mark.parametrize("path", ["runs/one", "runs/one/last.ckpt"])
def test_a_run_is_to_be_exported_before_it_is_trained_on(
    path: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(chats, tiny_model)
    capsys.readouterr()
    assert fit(chats, Path(path), "--name", "two") == 2
    told = one_line(capsys)
    assert f"`lit-posttrain export --ckpt {path} --out one-hf`" in told
    assert not Path("runs/two").exists()


def test_a_link_to_an_empty_folder_is_written_into(chats: Path, tiny_model: Path, tmp_path: Path) -> None:
    trained(chats, tiny_model)
    (tmp_path / "disk").mkdir()
    Path("out").symlink_to(tmp_path / "disk")
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    assert Path("out").is_symlink()
    assert (tmp_path / "disk/model.safetensors").is_file()


def test_a_folder_that_cannot_be_made_is_refused_first(
    chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(chats, tiny_model)
    capsys.readouterr()
    assert main(["export", "--ckpt", "runs/one", "--out", f"{chats}/out"]) == 2
    assert f"{chats} is not a folder that you may write to" in one_line(capsys)
