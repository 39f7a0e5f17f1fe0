"""What `--model` may be given by mistake, to every command that takes it: one line that says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import tiny
from helpers.cli import one_line

from lit_posttrain.cli.main import main

COMMANDS = {
    "generate": ["--prompt", "what is it"],
    "score": ["--data", "pairs.jsonl"],
    "chat": [],
}
MISTAKES = {
    "young": "young: a run that has saved no checkpoint yet; wait for its first one",
    "runs": "runs: a folder of runs or models; name one, such as runs/one",
    "models": "models: a folder of runs or models; name one, such as models/tiny",
    "nothing": "nothing: the folder holds no config.json, so it is not a model folder",
    "without a tokenizer": "no tokenizer in without a tokenizer; put its files there",
    "models/tiny/config.json": "models/tiny/config.json: a file that is no .gguf file; name the folder of the model",
    "pairs.jsonl": "pairs.jsonl: a file that is no .gguf file; name the folder of the model",
    "missing.ckpt": "missing.ckpt: no such checkpoint",
    "other.ckpt": "other.ckpt: a checkpoint, but not one that lit-posttrain wrote",
    "empty.ckpt": "empty.ckpt: damaged or cut short",
    "no/such/model": "no/such/model: no such folder",
    "": "the model's path is empty",
    " ": "the model's path is empty",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("names")
    model = tiny.save_model(home / "models/tiny")
    for folder in ("young", "runs/one", "nothing"):
        (home / folder).mkdir(parents=True)
    for run in ("young", "runs/one"):
        (home / run / "config.yaml").write_text("seed_everything: 0\n")
    (home / "runs/one/last.ckpt").touch()
    shutil.copytree(model, home / "without a tokenizer")
    for file in [*(home / "without a tokenizer").glob("*token*"), home / "without a tokenizer/chat_template.jinja"]:
        file.unlink(missing_ok=True)
    (home / "pairs.jsonl").write_text(json.dumps({"prompt": "what", "chosen": "a fox", "rejected": "a dog"}) + "\n")
    torch.save({"state_dict": {}}, home / "other.ckpt")
    (home / "empty.ckpt").touch()
    return home


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_model_is_one_line(
    command: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main([command, "--model", name, *COMMANDS[command]]) == 2
    assert MISTAKES[name] in (told := one_line(capsys))
    assert "--model.policy" not in told
