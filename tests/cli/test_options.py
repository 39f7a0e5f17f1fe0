"""Help and configs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import one_line
from helpers.processes import environment

from lit_posttrain.cli.main import main
from lit_posttrain.cli.options import option_tree
from lit_posttrain.rewards import LengthPenalty

REPOSITORY = Path(__file__).parent.parent.parent


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    of_models = ("fit", "validate", "test", "predict", "export", "generate", "score", "chat")
    for command in (*of_models, "audit", "annotate", "configs"):
        assert f"  {command}" in shown


@pytest.mark.parametrize("extra", [[], ["--config", "sft.yaml"], ["--model", "SFT"]])
def test_help_of_a_command_explains_every_option(extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *extra, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--model.policy.lora", "--data.path", "--data.overlong", "--trainer.max_epochs", "--wandb.mode"):
        assert f"  {option} " in shown
    assert "Longer conversations: `drop` them" in " ".join(shown.split())


@pytest.mark.parametrize("asked", ["--help", "--data.columns.help", "--model.policy.lora.help"])
def test_help_explains_columns_and_adapters(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "dpo.yaml", "--model", "lit_posttrain.DPO", asked]) == 0
    shown = capsys.readouterr().out
    for option in (
        "--data.columns.second TEXT",
        "--data.columns.ranks",
        "--model.policy.lora.rslora",
        "--model.beta",
    ):
        assert f"  {option}" in shown
    assert ".columns.help" not in shown


LOSS = """
from lit_posttrain.core.preference import PreferenceModule

class Margin(PreferenceModule):
    '''A hinge on a pair.'''

    def __init__(self, gap: float = 1.5, **options):
        '''
        Args:
            gap: How far apart the two are to be,
                in nats.
        '''
        super().__init__(**options)

    def loss_terms(self, batch):
        return {}
"""


def test_help_explains_a_class_of_ones_own(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_hinge.py").write_text(LOSS)
    assert main(["fit", "--model", "my_hinge.Margin", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--model Margin: A hinge on a pair:" in shown
    assert "  --model.gap NUMBER    How far apart the two are to be, in nats. (default: 1.5)\n" in shown
    assert "  --model.policy.path PATH" in shown  # which it hands on
    assert "  --model.optim.lr NUMBER" in shown
    Path("my_bare.py").write_text(LOSS.replace("'''A hinge on a pair.'''", ""))
    assert main(["fit", "--model", "my_bare.Margin", "--help"]) == 0
    assert "\n--model Margin:\n" in capsys.readouterr().out, "without a docstring"
    assert main(["fit", "--model", "my_hinge.Margn", "--help"]) == 2
    assert "--model my_hinge.Margn: module `my_hinge` (my_hinge.py) has no `Margn`; did you mean" in one_line(capsys)
    assert main(["fit", "--model", "DPPO", "--help"]) == 2
    assert "--model DPPO: there is no such method; did you mean" in one_line(capsys)


def test_a_class_that_nobody_can_import_is_not_offered() -> None:
    """Such as that of a notebook's cell that has run again, or of a module that is gone."""

    class Gone(LengthPenalty):
        pass

    assert Gone in LengthPenalty.__subclasses__()
    assert {"Gone", "LengthPenalty"} & set(option_tree().families["reward"]) == {"LengthPenalty"}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "audit"])
def test_every_option_of_a_command_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a docstring an option has a name and no help."""
    assert main([command, "--config", "grpo_gsm8k.yaml", "--help"]) == 0
    entries = re.split(r"\n  --", capsys.readouterr().out)[1:]
    words = [re.sub(r"\(default: .*?\)", "", entry, flags=re.DOTALL).split() for entry in entries]
    unexplained = [name for name, *text in words if len(text) < 4]
    assert len(entries) > 100
    assert unexplained == []


def test_a_reader_that_has_had_enough(tmp_path: Path) -> None:
    """`lit-posttrain fit --help | head -1`."""
    command = f"{shlex.quote(sys.executable)} -m lit_posttrain fit --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert done.stdout.startswith("usage: lit-posttrain fit")
    assert done.stderr == ""


def test_configs_are_listed_and_copied(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    assert "with/lora.yaml" in capsys.readouterr().out
    assert main(["configs", "--copy", "sft.yaml"]) == 0
    assert Path("sft.yaml").is_file()
    assert main(["configs", "--copy", "sft.yaml"]) == 2
    assert "exists already" in one_line(capsys)


def every_config() -> list[str]:
    home = REPOSITORY / "configs"
    return sorted(str(f.relative_to(home)) for f in home.rglob("*.yaml"))


@pytest.mark.parametrize("name", every_config())
def test_every_config_is_read_and_opens_with_its_command(name: str, tiny_model: Path, chats: Path) -> None:
    from lit_posttrain.cli.training import PostTrainCLI

    text = (REPOSITORY / "configs" / name).read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any("lit-posttrain fit --config" in line for line in header)
    if name == "with/gpu.yaml" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    configs = ["--config", str(REPOSITORY / "configs" / name)]
    if name.startswith("with/"):
        base = next(word for line in header for word in re.findall(r"configs/(\w+\.yaml)", line))  # of its own command
        configs = ["--config", str(REPOSITORY / "configs" / base), *configs]
    configs += ["--model.policy.path", str(tiny_model), "--wandb.mode", "disabled"]
    if name == "distillation.yaml":
        configs += ["--model.teacher.path", "teacher"]  # which the config leaves open; it is read later
    cli: Any = PostTrainCLI(args=configs, run=False, tracking=False)
    assert cli.model.model_spec.path == str(tiny_model)
