"""A checkpoint of adapters is used with the model that they were trained on, or not at all, by every command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import tiny
from helpers.cli import fit, one_line
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_posttrain.cli.main import main

LORA = ["--model.policy.lora.r", "4", "--trainer.precision", "32-true"]
PAIRS = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no " * (1 + i % 5)} for i in range(16)]


def begun(config: str, base: Path, *options: str) -> None:
    """One step of a method with adapters."""
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    data = "chats.jsonl" if config == "sft.yaml" else "pairs.jsonl"
    arguments = ["--config", config, "--data.path", data, "--model.policy.path", str(base), "--name", "one", *options]
    arguments += ["--wandb.mode", "disabled", "--trainer.accelerator", "cpu", "--trainer.max_steps", "1"]
    assert main(["fit", *arguments, "--trainer.enable_progress_bar", "false", "--data.val_fraction", "0.3"]) == 0


def other_weights(base: Path) -> None:
    tiny.save_model(base, seed=1)


def one_other_weight(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5, 7] *= 1.001
    model.save_pretrained(base)


def other_config(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (base / "config.json").write_text(json.dumps(config))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (other_weights, "other weights"),
    "one weight": (one_other_weight, "other weights"),
    "config": (other_config, "rope_theta 10000.0 in its config then, 500.0 now"),
}
USES = {
    "resume": ["fit", "--resume", "one", "--trainer.max_steps", "2"],
    "validate": ["validate", "--config", "runs/one/config.yaml", "--ckpt_path", "runs/one"],
    "predict": ["predict", "--config", "runs/one/config.yaml", "--ckpt_path", "runs/one"],
    "export": ["export", "--ckpt", "runs/one", "--out", "out"],
    "adapter": ["export", "--ckpt", "runs/one", "--out", "out", "--adapter", "true"],
    "generate": ["generate", "--model", "runs/one", "--prompt", "what is 3"],
    "chat": ["chat", "--model", "runs/one"],
    "score": ["score", "--model", "runs/one", "--data", "pairs.jsonl", "--out", "scores.jsonl"],
}


@pytest.mark.parametrize("use", USES)
def test_adapters_are_not_used_on_another_base(
    use: str, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.save_model(tmp_path / "base")
    begun("reward.yaml" if use == "score" else "sft.yaml", base, *LORA)
    kept = shutil.copytree(base, tmp_path / "kept")
    before = {file: file.read_bytes() for file in Path("runs/one").iterdir()}
    for change, told in CHANGES.values():
        change(base)
        capsys.readouterr()
        assert main(USES[use]) == 2
        assert told in one_line(capsys)
        assert not Path("out").exists()
        assert {file: file.read_bytes() for file in Path("runs/one").iterdir()} == before
        shutil.copytree(kept, base, dirs_exist_ok=True)
    if use != "chat":
        assert main(USES[use]) == 0, "the old files are back"


@pytest.mark.parametrize("config", ["dpo.yaml", "kto.yaml", "reward.yaml", "sft.yaml"])
@pytest.mark.parametrize("other", ["path", "dtype", "quantization"])
def test_a_run_of_adapters_goes_on_with_the_base_that_it_had(
    config: str, other: str, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(config, tiny.save_model(tmp_path / "base"), *LORA)
    tiny.save_model(tmp_path / "other", seed=1)
    value = {"path": str(tmp_path / "other"), "dtype": "bfloat16", "quantization": "nf4"}[other]
    capsys.readouterr()
    assert main(["fit", "--resume", "one", "--trainer.max_steps", "2", f"--model.policy.{other}", value]) == 2
    told = {
        "path": "other weights",
        "dtype": "--model.policy.dtype float32",
        "quantization": "quantization none then, 4 bits now",
    }
    assert told[other] in one_line(capsys)


def test_adapters_over_4_bits_are_not_measured_over_others(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.save_model(tmp_path / "base")
    begun("sft.yaml", base, *LORA, "--model.policy.quantization", "nf4")
    validate = [*USES["validate"], "--model.policy.quantization"]
    capsys.readouterr()
    plain = ["validate", "--config", "sft.yaml", "--data.path", "chats.jsonl", "--model.policy.path", str(base), *LORA]
    assert main([*plain, "--ckpt_path", "runs/one/last.ckpt", "--data.val_fraction", "0.3"]) == 2
    assert "quantization 4 bits then, none now" in one_line(capsys)
    assert main([*validate, "int8"]) == 2
    assert "quantization 4 bits then, 8 bits now" in one_line(capsys)
    assert main([*validate, "nf4"]) == 0
    one_other_weight(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.neg_()  # of what is quantized alone
    model.save_pretrained(base)
    capsys.readouterr()
    assert main([*validate, "nf4"]) == 2
    assert "other weights" in one_line(capsys)


def test_the_same_weights_elsewhere_and_in_other_files_are_the_same(chats: Path, tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base")
    begun("sft.yaml", base, *LORA)
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "moved", max_shard_size="100KB")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "moved")
    moved = ["--model.policy.path", str(tmp_path / "moved")]
    assert len(list((tmp_path / "moved").glob("*.safetensors"))) > 1
    assert main(["fit", "--resume", "one", "--trainer.max_steps", "2", *moved]) == 0


@pytest.mark.parametrize("lora", [True, False])
def test_the_template_of_training_is_used_whatever_became_of_its_file(
    lora: bool, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.save_model(tmp_path / "base")
    mine = tiny.CHATML.replace("<|im_start|>", "<|im_start|>the ")
    Path("mine.jinja").write_text(mine)
    options = LORA if lora else []
    assert (
        fit(
            chats,
            base,
            "--name",
            "one",
            "--trainer.max_steps",
            "1",
            "--model.policy.chat_template",
            "mine.jinja",
            *options,
        )
        == 0
    )
    for change in (lambda: Path("mine.jinja").write_text(tiny.CHATML), lambda: Path("mine.jinja").unlink()):
        change()
        shutil.rmtree("out", ignore_errors=True)
        assert main(["export", "--ckpt", "runs/one", "--out", "out"]) == 0
        assert AutoTokenizer.from_pretrained("out").chat_template == mine
        assert main(["generate", "--model", "runs/one", "--prompt", "what is 3", "--max_new_tokens", "2"]) == 0
    Path("mine.jinja").write_text(tiny.CHATML)
    capsys.readouterr()
    assert main(["fit", "--resume", "one", "--trainer.max_steps", "2"]) == 2
    assert "the chat template is another than the checkpoint was trained with" in one_line(capsys)


@pytest.mark.parametrize("use", ["resume", "export", "generate"])
def test_another_tokenizer_is_refused(
    use: str, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.save_model(tmp_path / "base")
    begun("sft.yaml", base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    vocabulary = json.loads((base / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["q"], words["w"] = words["w"], words["q"]
    (base / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert AutoTokenizer.from_pretrained(base)("q")["input_ids"] != tokenizer("q")["input_ids"]
    capsys.readouterr()
    assert main(USES[use]) == 2
    assert "(other tokens)" in one_line(capsys)


def test_a_critic_with_adapters_keeps_its_base_too(
    chats: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    critic = tiny.save_model(tmp_path / "critic", seed=3)
    Path("asked.jsonl").write_text('{"prompt": "what is 3", "answer": "3"}\n' * 8)
    options = ["--config", "demo_ppo.yaml", "--data.path", "asked.jsonl", "--model.policy.path", str(tiny_model)]
    options += ["--model.critic.start", "null", "--model.critic.model.path", str(critic), "--trainer.max_steps", "1"]
    options += ["--model.critic.model.lora.r", "4", "--model.rollout.max_new_tokens", "4", "--name", "one"]
    options += ["--wandb.mode", "disabled", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *options]) == 0
    tiny.save_model(critic, seed=4)
    capsys.readouterr()
    assert main(["fit", "--resume", "one", "--trainer.max_steps", "2"]) == 2
    said = "--model.critic.model: another model than the checkpoint was trained with (other weights)"
    assert said in one_line(capsys)
