"""Classes of one's own that are not there, cannot be imported, or are not what they are taken for: one line each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.cli import one_line

from lit_posttrain.cli.main import main

MINE = '''
import lightning.pytorch as pl
from torch import Tensor
from lit_posttrain import PostTrainingModule
from lit_posttrain.core.preference import PreferenceModule
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.rewards import Reward

class Abstract(PreferenceModule):
    """No loss."""

class Untyped(PreferenceModule):
    def __init__(self, policy, gap=1.0):
        super().__init__(policy)
    def loss_terms(self, batch):
        return {}

class Long(Reward):
    def __init__(self, unit: int = 10) -> None:
        super().__init__()
    def score(self, batch):
        return [len(text) / self.unit for text in batch.responses]

class Unfinished(Reward):
    pass

class Handed(PreferenceModule):
    def __init__(self, *args, gap: float = 1.0, **options) -> None:
        super().__init__(*args, **options)
    def loss_terms(self, batch):
        return {}

class Checked(PreferenceModule):
    def __init__(self, policy: ModelSpec, gap: "Fraction" = None) -> None:
        super().__init__(policy)
    def loss_terms(self, batch):
        return {}

class Misspelt(PreferenceModule):
    def __init__(self, policy: ModelSpec, gap: "pl.Trainr" = None) -> None:
        super().__init__(policy)
    def loss_terms(self, batch):
        return {}

class Unmade(PreferenceModule):
    def __init__(self, policy: ModelSpec) -> None:
        self.gap = 1.0
    def loss_terms(self, batch):
        return {}

class Alone(PreferenceModule):
    def loss_terms(self):
        return {}

class Indexed(PreferenceModule):
    def loss_terms(self, batch, batch_idx):
        return {}

class Stepping(PreferenceModule):
    def loss_terms(self, batch):
        return {}
    def training_step(self, batch, batch_idx):
        return self.policy(batch).logprobs.sum()

class Closed(PreferenceModule):
    def __init__(self, gap: float = 1.0) -> None:
        super().__init__()
    def loss_terms(self, batch):
        return {}

class Brief(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module):
        pass

class Ended(pl.Callback):
    def on_train_batch_ended(self, trainer, pl_module, outputs, batch, batch_idx):
        pass

class Mood(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("mood", "good")

class Trls(Reward):
    def score(self, prompts, completions):
        return [0.0 for _ in completions]

class Bare(pl.LightningDataModule):
    """Not read by any of the package's own data modules."""

class Lazy(pl.LightningDataModule):
    def __init__(self) -> None:
        self.rows = []

def as_pair(row, file):
    return row

def short(completions):
    return [0.0]

NUMBER = 3
'''
FILES = {
    "my/__init__.py": "",
    "my/parts.py": MINE,
    "lacking.py": "x = 1\nimport nothing_there\n",
    "unclosed.py": "x = (\n",
    "failing.py": "def go():\n    raise ValueError('not\\ntoday')\ngo()\n",
    "script.py": "import sys\nsys.exit(3)\n",
    "mine.yaml": "model:\n  class_path: GRPO\n  init_args:\n    rewards:\n    - class_path: my.parts.Lung\n",
}
MISTAKES: dict[str, tuple[list[str], str]] = {
    "a class": (["--model", "my.parts.Handet"], "module `my.parts` (my/parts.py) has no `Handet`; did you mean Han"),
    "a module": (["--model", "my.pats.Long"], "module `my` (my/__init__.py) has no `pats`; did you mean parts?"),
    "a package": (["--model", "myy.parts.Long"], "no module `myy` in {}, on PYTHONPATH or installed; did you mean my?"),
    "a file": (["--model", "my/parts.py"], "the name of a file; name what is in it, such as my.parts.NAME"),
    "a colon": (["--model", "my.parts:Handed"], "my.parts:Handed: write a dot in place of the colon: my.parts.Handed"),
    "a colon and no dot": (["--model", "parts:Handed"], "there is no such method; did you mean parts.Handed?"),
    "a format with two arguments": (
        ["--config", "simpo.yaml", "--model.policy.path", "{model}", "--data.format", "my.parts.as_pair"],
        "--data.format my.parts.as_pair takes (row, file), and is called with the row alone, a dict",
    ),
    "a number": (["--model", "my.parts.NUMBER"], "is an int, and a method is a class"),
    "a whole module": (["--model", "my.parts"], "is a module, and a method is a class"),
    "another kind of class": (
        ["--model", "my.parts.Long"],
        "my.parts.Long (my/parts.py:18) is a reward; a method is wanted, which inherits from lit_posttrain.core.",
    ),
    "any class": (["--model", "pathlib.Path"], "is a class of another kind; a method is wanted"),
    "without a loss": (["--model", "my.parts.Abstract"], "lacks loss_terms, which a method must define"),
    "without types": (["--model", "my.parts.Untyped"], "`policy` of __init__ has no type; write policy: ModelSpec"),
    "with a type for checkers alone": (
        ["--model", "my.parts.Checked"],
        "a type of its __init__ is not known (name 'Fraction' is not defined); import it at the top of the module",
    ),
    "with a misspelt type": (
        ["--model", "my.parts.Misspelt"],
        "a type of its __init__ is not known (module 'lightning.pytorch' has no attribute 'Trainr')",
    ),
    "a constructor without its base class's": (
        ["--model", "my.parts.Unmade", "--model.policy.path", "."],
        "the constructor of Unmade must call super().__init__ (my/parts.py:",
    ),
    "a loss that takes no batch": (
        ["--model", "my.parts.Alone"],
        "Alone.loss_terms (my/parts.py:52) takes (self), and is called with (self, batch): let it take these",
    ),
    "a loss that takes more": (["--model", "my.parts.Indexed"], "takes (self, batch, batch_idx), and is called with ("),
    "a step of its own": (
        ["--model", "my.parts.Stepping"],
        "Stepping.training_step (my/parts.py:62) replaces the one that divides and logs the loss; define loss_terms",
    ),
    "a constructor without its base class's options": (
        ["--model", "my.parts.Closed"],
        "missing 1 required positional argument: 'policy'; let Closed.__init__ take **options, and pass them on",
    ),
    "a hook that takes less": (
        ["--config", "sft.yaml", "--trainer.callbacks+=my.parts.Brief"],
        "takes (self, trainer, pl_module), and is called with (self, trainer, pl_module, outputs, batch, batch_idx)",
    ),
    "a misspelt hook": (
        ["--config", "sft.yaml", "--trainer.callbacks+=my.parts.Ended"],
        "is no hook, and nothing calls it; did you mean on_train_batch_end?",
    ),
    "a reward that takes what TRL's do": (
        ["--model", "GRPO", "--model.rewards", "my.parts.Trls"],
        "takes (self, prompts, completions), and is called with (self, batch): let it take these",
    ),
    "that imports what is not there": (
        ["--model", "lacking.Loss"],
        "lacking.Loss: importing lacking fails at lacking.py:2: ModuleNotFoundError: No module named 'nothing_there'",
    ),
    "of wrong syntax": (["--model", "unclosed.Loss"], "importing unclosed fails at unclosed.py:1: SyntaxError"),
    "that fails": (["--model", "failing.Loss"], "importing failing fails at failing.py:2: ValueError: not today"),
    "that is a script": (["--model", "script.Loss"], "importing script fails at script.py:2: SystemExit: 3"),
    "a misspelt option of it": (
        ["--model", "my.parts.Handed", "--model.gep", "1"],
        "--model.gep: no such option; did you mean --model.gap?",
    ),
    "a misspelt option that it hands on": (
        ["--model", "my.parts.Handed", "--model.policy.pth", "x"],
        "--model.policy.pth: no such option; did you mean --model.policy.path?",
    ),
    "an option that it lacks": (["--model", "my.parts.Handed"], "--model: Handed needs policy.path"),
    "a reward": (["--model", "GRPO", "--model.rewards+=my.parts.Lung"], "has no `Lung`; did you mean Long?"),
    "a reward's option": (
        ["--model", "GRPO", "--model.rewards+=my.parts.Long", "--model.rewards.unti", "3"],
        "--model.rewards.unti: no such option; did you mean --model.rewards.unit?",
    ),
    "an unfinished reward": (
        ["--model", "GRPO", "--model.rewards", "my.parts.Unfinished"],
        "lacks score, which a reward must define",
    ),
    "a function as a reward": (
        ["--model", "GRPO", "--model.rewards", "my.parts.short"],
        "is a function, and a reward is a class; pass --model.rewards+=FunctionReward --model.rewards.function my.par",
    ),
    "a reward in a file": (["--config", "mine.yaml"], "mine.yaml:5: class_path my.parts.Lung: module `my.parts`"),
    "a callback": (["--config", "sft.yaml", "--trainer.callbacks+=my.parts.Log"], "has no `Log`; did you mean Long?"),
    "a plugin": (
        ["--config", "sft.yaml", "--trainer.plugins", "my.parts.Long"],
        "is a reward; a plugin is wanted, which",
    ),
    "a strategy": (["--config", "sft.yaml", "--trainer.strategy", "my.parts.Shard"], "has no `Shard`"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "1+1", "chosen": "2", "rejected": "3"}) + "\n")
    return tmp_path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_a_line(
    mistake: str, folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, told = MISTAKES[mistake]
    options = [option.replace("{model}", str(tiny_model)) for option in options]
    assert main(["fit", *options, "--data", "PreferenceData", "--data.path", "pairs.jsonl"]) == 2
    assert told.format(folder) in one_line(capsys)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("command", "data", "told"),
    [
        ("audit", "Bare", "--data Bare: audit reads the files of this package's data modules; let it inherit from"),
        ("fit", "Lazy", "the constructor of Lazy must call super().__init__ (my/parts.py:"),
    ],
)
def test_a_data_module_that_is_none_of_these(
    command: str, data: str, told: str, folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "SFT", "--model.policy.path", str(tiny_model)]
    assert main([command, *model, "--data", f"my.parts.{data}"]) == 2
    assert told in one_line(capsys)


def test_a_callback_that_logs_a_text(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--config", "simpo.yaml", "--model.policy.path", str(tiny_model), "--trainer.callbacks+=my.parts.Mood"]
    here = ["--data.path", "pairs.jsonl", "--data.val_fraction", "0", "--wandb.mode", "disabled", "--name", "one"]
    assert main(["fit", *run, *here]) == 2
    assert "my/parts.py:81: " in (told := one_line(capsys))
    assert "mood" in told
    assert "--trainer" not in told
