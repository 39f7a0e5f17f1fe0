"""A model's files that do not fit it: every command that loads weights, with a tensor missing, too many, or of another
shape, answers with one line that names the tensor."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.cli import fit, one_line
from helpers.processes import run_script
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from lit_posttrain.cli.main import main

RUN_COMMANDS = Path(__file__).parents[1] / "spine" / "run_commands.py"
LAYER = "model.layers.1.mlp.up_proj.weight"
Change = Callable[[dict[str, Tensor]], Any]
DEFECTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda state: state.pop(LAYER), rf"1 tensor of \d+ missing \({LAYER}\)"),
    "unknown": (
        lambda state: state.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(128, 64)}),
        r"1 tensor unknown to the model \(model.layers.2.mlp.up_proj.weight\)",
    ),
    "another shape": (
        lambda state: state.update({LAYER: torch.zeros(96, 64)}),
        rf"1 tensor of another shape \({LAYER}: \[96, 64\], the model has \[128, 64\]\)",
    ),
    "a prefix": (
        lambda state: [state.update({f"base_model.model.{name}": state.pop(name)}) for name in list(state)],
        r"all names have base_model.model. in front: save what peft's merge_and_unload\(\) returns",
    ),
}


def edited(folder: Path, out: Path, change: Change) -> Path:
    """A copy of a model's folder with other weights."""
    shutil.copytree(folder, out)
    state = load_file(out / "model.safetensors")
    change(state)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "model"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(tiny.llama_config(num_labels=1)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


QUIET = ["--wandb.mode", "disabled", "--trainer.accelerator", "cpu", "--trainer.max_steps", "1"]
PPO = ["fit", "--config", "demo_ppo.yaml", "--data.path", "CHATS", *QUIET, "--model.policy.path"]
REWARD = "[{class_path: RewardModelScore, init_args: {path: broken}}]"
# by road: the command, BROKEN for the folder of a broken language model or (SCORES) reward model, TINY for a whole one
ROADS: dict[str, list[str]] = {
    "sft": ["fit", "--config", "sft.yaml", "--data.path", "CHATS", *QUIET, "--model.policy.path", "BROKEN"],
    "lora": [
        *("fit", "--config", "sft.yaml", "--data.path", "CHATS", *QUIET),
        *("--model.policy.lora.r", "4", "--model.policy.path", "BROKEN"),
    ],
    "nf4": [
        *("fit", "--config", "sft.yaml", "--config", "with/qlora.yaml", "--data.path", "CHATS", *QUIET),
        *("--model.policy.path", "BROKEN"),
    ],
    "int8": [
        *("fit", "--config", "sft.yaml", "--config", "with/qlora.yaml", "--data.path", "CHATS", *QUIET),
        *("--model.policy.quantization", "int8", "--model.policy.path", "BROKEN"),
    ],
    "a reference": ["fit", "--config", "dpo.yaml", "--data.path", "PAIRS", *QUIET, "--model.policy.path", "BROKEN"],
    "a new score head": [
        *("fit", "--config", "reward.yaml", "--data.path", "PAIRS", *QUIET, "--model.policy.path", "BROKEN"),
    ],
    "a score head": [
        *("fit", "--config", "reward.yaml", "--data.path", "PAIRS", *QUIET, "--model.policy.path", "BROKEN_SCORES"),
    ],
    "ppo": [*PPO, "BROKEN"],
    "a critic from a language model": [*PPO, "TINY", "--model.critic.model.path", "BROKEN"],
    "a critic from a reward model": [*PPO, "TINY", "--model.critic.model.path", "BROKEN_SCORES"],
    "the start of a critic": [*PPO, "TINY", "--model.critic.start", "BROKEN_SCORES"],
    "a reward": [*PPO, "TINY", "--model.rewards", REWARD],
    "validate": [
        *("validate", "--config", "sft.yaml", "--data.val_path", "CHATS", "--trainer.accelerator", "cpu"),
        *("--model.policy.path", "BROKEN"),
    ],
    "generate": ["generate", "--prompt", "what is 3", "--model", "BROKEN"],
    "chat": ["chat", "--model", "BROKEN"],
    "score": ["score", "--data", "PAIRS", "--model", "BROKEN_SCORES"],
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("road", ROADS)
def test_a_folder_that_does_not_fit_its_config(
    road: str,
    defect: str,
    chats: Path,
    tiny_model: Path,
    reward_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    change, told = DEFECTS[defect]
    pairs = Path("pairs.jsonl")
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no"} for i in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = "BROKEN_SCORES" in ROADS[road] or REWARD in ROADS[road]
    broken = edited(reward_model if scores else tiny_model, Path("broken"), change)
    given = {"CHATS": str(chats), "PAIRS": str(pairs), "TINY": str(tiny_model)}
    given |= {"BROKEN": str(broken), "BROKEN_SCORES": str(broken)}
    assert main([given.get(word, word) for word in ROADS[road]]) == 2
    line = one_line(capsys)
    assert str(broken) in line
    assert re.search(told, line), line
    assert not list(Path("runs").glob("*/last.ckpt"))


GGUF_NAME = "blk.1.ffn_up.weight"
GGUF_DEFECTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda state: state.pop(GGUF_NAME), DEFECTS["missing"][1]),
    "unknown": (
        lambda state: state.update({"rope_freqs.weight": torch.ones(8)}),
        r"1 tensor unknown to the model \(rope_freqs.weight\)",
    ),
    "another shape": (lambda state: state.update({GGUF_NAME: torch.zeros(96, 64)}), DEFECTS["another shape"][1]),
}


@pytest.mark.parametrize("defect", GGUF_DEFECTS)
@pytest.mark.parametrize("road", ["sft", "nf4", "a new score head", "generate"])
def test_a_gguf_file_that_does_not_fit_its_header(
    road: str, defect: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers loads what it has names for, compares no shapes, and draws the rest at random."""
    change, told = GGUF_DEFECTS[defect]
    broken = tiny.save_gguf(tiny_model, Path("broken.gguf"), change)
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no"} for i in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"CHATS": str(chats), "PAIRS": "pairs.jsonl", "BROKEN": str(broken)}
    assert main([given.get(word, word) for word in ROADS[road]]) == 2
    line = one_line(capsys)
    assert "broken.gguf" in line
    assert re.search(told, line), line
    assert not list(Path("cache/models").glob("*-dense")), "a conversion of random weights would be found again"


TRAINED = "policy.model.model.norm.weight"
ADAPTER = "policy.model.base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"


@pytest.mark.parametrize("defect", ["missing", "unknown", "another shape"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("road", ["resume", "validate", "export", "generate", "chat"])
def test_a_checkpoint_that_does_not_fit_its_model(
    road: str, lora: bool, defect: str, chats: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = ["--model.policy.lora.r", "4"] if lora else []
    assert (
        fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1", *adapters, "--data.val_fraction", "0") == 0
    )
    name = ADAPTER if lora else TRAINED
    checkpoint = torch.load("runs/one/last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    if defect == "missing":
        del state[name]
    elif defect == "unknown":
        state[f"{name}.more"] = torch.zeros(3)
    else:
        state[name] = torch.zeros(3, *state[name].shape[1:])
    torch.save(checkpoint, "runs/one/last.ckpt")
    capsys.readouterr()
    config = ["--config", "runs/one/config.yaml", "--data.val_path", str(chats)]
    command = {
        "resume": ["fit", "--resume", "one", "--trainer.max_steps", "2"],
        "validate": ["validate", *config, "--ckpt_path", "runs/one/last.ckpt"],
        "export": ["export", "--ckpt", "runs/one", "--out", "out"],
        "generate": ["generate", "--prompt", "what is 3", "--model", "runs/one"],
        "chat": ["chat", "--model", "runs/one"],
    }
    assert main(command[road]) == 2
    line = one_line(capsys)
    assert "checkpoint" in line or "last.ckpt" in line
    assert name.removeprefix("policy.") in line
    assert {"missing": "missing", "unknown": "unknown to the model", "another shape": "of another shape"}[
        defect
    ] in line
    assert not Path("out").exists()


def test_sharded_processes_all_hear_that_a_folder_does_not_fit(chats: Path, tiny_model: Path) -> None:
    """Rank zero alone reads the files: the other would wait for its weights."""
    broken = edited(tiny_model, Path("broken"), DEFECTS["missing"][0])
    command = ["fit", "--config", "sft.yaml", "--config", "with/fsdp2.yaml", "--data.path", str(chats), *QUIET]
    command += ["--trainer.devices", "2", "--model.policy.path", str(broken)]
    commands = Path("commands.json").absolute()
    commands.write_text(json.dumps([["fit", command]]))
    run_script(RUN_COMMANDS, commands, devices=2)
    for rank in ("", ".1"):
        found = json.loads(Path(f"{commands}.results{rank}").read_text())["fit"]
        assert found["status"] == 2
        assert "Traceback" not in found["said"]
        assert re.findall("error: (.*)", found["said"]) == [
            f"the model at broken: the weights do not fit the model: 1 tensor of 20 missing ({LAYER}); the files or "
            "the config.json beside them are not those of this model; save or download it again"
        ]
