"""Rows as people look at them: every token's text, and what is trained on between brackets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny
from helpers.cli import one_line

from lit_posttrain.cli.main import main
from lit_posttrain.data.audit.show import shown
from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.store.build import TokenizeOptions, build_store

TALK = [
    {"role": "user", "content": "the colour"},
    {"role": "assistant", "content": "a fox"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "it is lazy"},
]


def test_trained_tokens_stand_between_brackets(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": TALK}))
    tokenizer = tiny.tokenizer()
    store, _ = build_store([str(path)], tokenizer, TokenizeOptions(), str(tmp_path / "cache"))
    text = shown(store[0], tokenizer)
    lines = text.split("\n")
    assert lines[0] == f"{path}:1: prompt, {len(store[0].prompt)} tokens"
    assert lines[1:4] == ["<|im_start|>user", "the colour<|im_end|>", "<|im_start|>assistant"]
    trained = int(store[0].responses[0].loss_mask.sum())
    assert f"response, {len(store[0].responses[0].tokens)} tokens, {trained} trained: 'a' ' f" in text
    assert text.endswith(
        "[[a fox<|im_end|>]]\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n[[it is lazy<|im_end|>]]"
    )
    assert "\033" not in text
    assert "\033[32m[[a fox<|im_end|>]]\033[0m" in shown(store[0], tokenizer, colour=True)


def test_responses_and_trained_prompts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "the colour", "chosen": "a fox", "rejected": "a dog " * 900}))
    tokenizer = tiny.tokenizer()
    options = PreferenceOptions(max_length=10_000, train_on_prompt=True)
    store, _ = build_store([str(path)], tokenizer, options, str(tmp_path / "cache"))
    text = shown(store[0], tokenizer)
    assert "\n[[<|im_start|>user\nthe colour<|im_end|>\n<|im_start|>assistant\n]]\nresponse 1 (chosen), " in text
    assert "\nresponse 2 (rejected), " in text
    assert " characters) ... " in text
    assert len(text) < 3000


def test_the_labels_of_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.5}))
    store, _ = build_store([str(path)], tiny.tokenizer(), PreferenceOptions(), str(tmp_path / "cache"))
    tree = store[0]
    assert "response 1 (chosen, margin 1.5), " in shown(tree, tiny.tokenizer())
    tree.responses[0].labels["flip_prob"] = 0.25
    tree.responses[1].labels["votes"] = 3.0
    assert "response 1 (chosen, margin 1.5, flip_prob 0.25), " in shown(tree, tiny.tokenizer())
    assert "response 2 (rejected, votes 3), " in shown(tree, tiny.tokenizer())
    tree.responses[0].labels["flip_prob"] = 0.5
    assert "response 1 (tie, margin 1.5), " in shown(tree, tiny.tokenizer())


def test_from_the_command_line(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": TALK}) + "\n" for _ in range(5)))
    command = ["audit", "--config", "sft.yaml", "--data.path", str(path), "--model.policy.path", str(tiny_model)]
    command += ["--data.cache_dir", str(tmp_path / "cache"), "--data.val_fraction", "0"]
    assert main([*command, "--show", "3"]) == 0
    out = capsys.readouterr().out
    assert out.count("[[a fox<|im_end|>]]") == 3
    assert all(f"{path}:{line}: prompt" in out for line in (1, 2, 3))
    assert main([*command, "--show", "-1"]) == 2
    assert "--show -1: how many rows to show, such as --show 3" in one_line(capsys)
    assert main([*command, "--show", "some"]) == 2
    assert "--show: expected a whole number or null, got some" in one_line(capsys)
