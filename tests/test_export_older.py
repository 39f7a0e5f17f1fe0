"""Exported folders under the names that transformers 4.57 reads; 4.57.6 was seen to compute the same with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.cli import fit
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lit_posttrain.cli.main import main
from lit_posttrain.inference.export_older import readable_by_older

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 16}
SIZES |= {"pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **more}}


@pytest.mark.parametrize(
    ("kind", "config", "older"),
    [
        ("llama", rope(1e5), {"rope_theta": 1e5}),
        ("llama", rope(5e5, **LLAMA3), {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        ("qwen2", rope(1e6, rope_type="yarn", factor=4.0), {"rope_theta": 1e6}),
        ("gpt_neox", rope(2e4, partial_rotary_factor=0.5), {"rotary_emb_base": 2e4, "rotary_pct": 0.5}),
        ("phi3", rope(2e4), {"rope_theta": 2e4}),
        ("gemma3_text", {}, {"rope_theta": 1e6, "rope_local_base_freq": 1e4}),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}, {"num_experts": 4}),
    ],
)
def test_older_names_stand_beside_the_new_ones(
    kind: str, config: dict[str, Any], older: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **config)).eval()
    model.save_pretrained(tmp_path)
    readable_by_older(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in older} == older
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(ids).logits, model(ids).logits), "5 reads it as before"


def test_a_tokenizer_has_the_older_class_and_keys(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    tokenizer.save_pretrained(tmp_path)
    readable_by_older(tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|more|>"]
    assert "extra_special_tokens" not in written
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a<|more|>")["input_ids"] == tokenizer("a<|more|>")["input_ids"]
    assert again.all_special_tokens == tokenizer.all_special_tokens


def test_an_export_is_readable_by_both(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text('{"prompt": "what is 3", "completion": "3 is 3"}\n' * 4)
    short = ["--trainer.max_steps", "1", "--name", "one", "--model.policy.lora.r", "4"]
    assert fit(Path("chats.jsonl"), tiny_model, *short) == 0
    assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
    assert json.loads(Path("out/config.json").read_text())["rope_theta"] == 10000.0
    assert main(["export", "--ckpt", "runs/one", "--out", "adapter", "--adapter", "true"]) == 0
    for folder in ("out", "adapter"):
        written = json.loads(Path(folder, "tokenizer_config.json").read_text())
        assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
