"""An option before a --config that sets the same one: an error, as the file would hold without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_posttrain.cli.options import option_tree
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.errors import PostTrainError

TREE = option_tree()
MINE = """name: seven
model:
  class_path: SimPO
  init_args:
    policy:
      path: x
      lora: {r: 4}
    beta: 2.0
trainer:
  max_steps: 3
  callbacks: [FiniteLossGuard]
data:
  class_path: PreferenceData
  init_args:
    path: x
    columns: {prompt: q}
"""
OVERLAYS = {
    "mine.yaml": MINE,
    "whole.yaml": "model:\n  init_args:\n    policy:\n      lora: null\n",
    "other.yaml": "model:\n  class_path: DPO\n  init_args:\n    beta: 2.0\n",
    "own.yaml": "model:\n  class_path: my_loss.Margin\n",
    "lora.yaml": "model:\n  init_args:\n    policy:\n      lora: {r: 4}\n",
    "more.yaml": "trainer:\n  callbacks+: [SampleLogger]\n",
    "chosen.yaml": "data:\n  init_args:\n    columns: {chosen: a}\n",
}
REPLACED: dict[str, tuple[list[str], str]] = {
    "a class and its option": (
        ["--model", "DPO", "--model.label_smoothing", "0.1", "--config", "mine.yaml"],
        "mine.yaml:2: model replaces --model and --model.label_smoothing, given before it; put --config mine.",
    ),
    "a class that is not known": (
        ["--model", "my_loss.Margin", "--config", "mine.yaml"],
        "mine.yaml:2: model replaces",
    ),
    "a value": (["--name", "x", "--config", "mine.yaml"], "mine.yaml:1: name replaces --name, given before it"),
    "a value below": (
        ["--trainer.max_steps=9", "--config=mine.yaml"],
        "mine.yaml:10: max_steps replaces --trainer.ma",
    ),
    "a list": (
        ["--trainer.callbacks+=EarlyStopping", "--config", "mine.yaml"],
        "mine.yaml:11: callbacks replaces --trainer.callbacks,",
    ),
    "a value of an option that the class shares": (
        ["--config", "mine.yaml", "--model.beta", "3", "--config", "other.yaml"],
        "other.yaml:4: beta replaces --model.beta,",
    ),
    "an option of a class that goes": (
        ["--config", "mine.yaml", "--model.gamma", "3", "--config", "other.yaml"],
        "other.yaml:1: model replaces --model.gamma,",
    ),
    "a group that is left out": (
        ["--config", "mine.yaml", "--model.policy.lora.r", "8", "--config", "whole.yaml"],
        "whole.yaml:4: lora replaces --model.policy.lora.r,",
    ),
    "none for a group": (
        ["--config", "mine.yaml", "--model.policy.lora", "null", "--config", "mine.yaml"],
        "mine.yaml:7: lora replaces --model.policy.lora,",
    ),
}
KEPT: dict[str, list[str]] = {
    "after it": ["--config", "mine.yaml", "--model", "DPO", "--name", "x"],
    "another option": ["--runs", "x", "--trainer.max_epochs", "2", "--config", "mine.yaml"],
    "the same": ["--name", "seven", "--trainer.max_steps", "3", "--model", "SimPO", "--config", "mine.yaml"],
    "a list that grows": ["--config", "mine.yaml", "--trainer.callbacks+=KLControl", "--config", "more.yaml"],
    "a member of a group": [
        *("--config", "mine.yaml", "--data.columns.prompt", "p"),
        *("--data.columns", "{rejected: b}", "--config", "chosen.yaml"),
    ],
    "of an overlay": ["--config", "mine.yaml", "--name", "x", "--config", "whole.yaml", "--config", "more.yaml"],
    "another option of a class that is not known": [
        *("--config", "mine.yaml", "--model", "my_loss.Margin", "--model.tau", "1", "--config", "lora.yaml"),
    ],
    "an option that a class that is not known may take": [
        *("--config", "mine.yaml", "--model.optim.lr", "1", "--config", "own.yaml"),
    ],
    "a file over a file": ["--config", "mine.yaml", "--config", "other.yaml"],
}


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config and overlays in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, text in OVERLAYS.items():
        Path(name).write_text(text)


@pytest.mark.parametrize("case", REPLACED)
def test_an_option_that_a_config_replaces(case: str) -> None:
    args, said = REPLACED[case]
    with pytest.raises(PostTrainError) as problem:
        CommandLine(TREE, "fit").read(args)
    assert str(problem.value).startswith(said)


@pytest.mark.parametrize("case", KEPT)
def test_an_option_that_holds(case: str) -> None:
    line = CommandLine(TREE, "fit")
    assert line.read([*KEPT[case], "--help"])
