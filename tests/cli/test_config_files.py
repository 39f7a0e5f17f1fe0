"""Mistakes in a config: the file, the line, and what to do; only options of what was chosen are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_posttrain.cli.options import option_tree
from lit_posttrain.cli.parsing.config_file import read_config
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.errors import PostTrainError

TREE = option_tree()
SFT = """model:
  class_path: SFT
  init_args:
    policy:
      path: x
    optim: {warmup_ratio: 0.1}
data:
  class_path: ConversationData
  init_args:
    path: x
trainer:
  max_steps: 3
"""


def changed(old: str, new: str) -> str:
    assert old in SFT
    return SFT.replace(old, new)


MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "unknown name": (
        changed("warmup_ratio:", "warm_up:"),
        "mine.yaml:6: warm_up: no such option; did you mean warmup",
    ),
    "unknown name, deeper": (
        changed("path: x\n    optim", "pth: x\n    optim"),
        "mine.yaml:5: pth: no such option;",
    ),
    "unknown section": (changed("trainer:", "trainr:"), "mine.yaml:11: trainr: no such option; did you mean trainer?"),
    "another method's": (
        changed("optim: {warmup_ratio: 0.1}", "beta: 0.1"),
        "mine.yaml:6: beta: SFT has no such option; DPO, Distillation, GRPO, KTO, ORPO, OnlineDPO, PPO and SimPO",
    ),
    "another trainer's": (
        changed("optim: {warmup_ratio: 0.1}", "learning_rate: 0.1"),
        "mine.yaml:6: learning_rate: no such option; did you mean --model.optim.lr?",
    ),
    "beside init_args": (
        changed("  init_args:\n    policy:\n      path: x\n    optim: {warmup_ratio: 0.1}", "  policy:\n    path: x"),
        "mine.yaml:3: policy: stands beside class_path; options of SFT go below init_args",
    ),
    "wrong type": (
        changed("max_steps: 3", "max_steps: three"),
        "mine.yaml:12: max_steps: expected a whole number",
    ),
    "wrong type, deeper": (
        changed("ratio: 0.1", "ratio: [1]"),
        "mine.yaml:6: warmup_ratio: expected a number, got a",
    ),
    "a list for a mapping": (
        changed("    policy:\n      path: x", "    policy: [x]"),
        "mine.yaml:4: policy: expected options, each a name and a value, got a list",
    ),
    "a value for a mapping": (
        changed("trainer:\n  max_steps: 3", "trainer: 3"),
        "mine.yaml:11: trainer: expected",
    ),
    "no such class": (
        changed("SFT", "SFTT"),
        "mine.yaml:2: class_path SFTT: there is no such method; did you",
    ),
    "a class that goes elsewhere": (
        changed("ConversationData", "DPO"),
        "mine.yaml:8: class_path DPO: that is a",
    ),
    "missing option": (changed("      path: x\n    opt", "      dtype: float32\n    opt"), "SFT needs policy.path"),
    "twice": (
        changed("ratio: 0.1}", "ratio: 0.1}\n    optim: {}"),
        "mine.yaml:7: `optim` stands here a second",
    ),
    "tab": (changed("    policy", "\tpolicy"), "mine.yaml:4: a tab in the indentation"),
    "missing colon": (
        changed("class_path: SFT", "class_path SFT"),
        "mine.yaml:2: a colon is missing in `class_path",
    ),
    "missing colon of a section": (changed("trainer:", "trainer"), "mine.yaml:11: a colon is missing after `trainer`"),
    "indented too deep": (
        changed("  init_args:\n    policy", "   init_args:\n    policy"),
        "mine.yaml:3: `init",
    ),
    "open quote": (changed("path: x\ntrainer", "path: 'x\ntrainer"), "mine.yaml:10: a quote is opened and not closed"),
    "open bracket": (changed("path: x\ntrainer", "path: [x\ntrainer"), "mine.yaml:10: a bracket is opened"),
    "unknown alias": (changed("path: x\ntrainer", "path: *y\ntrainer"), "mine.yaml:10: undefined alias 'y'"),
    "recursive alias": ("trainer: &a\n  x: *a\n", "mine.yaml:1: an alias (*) here stands for something"),
    "two documents": (SFT + "---\n" + SFT, "mine.yaml:13: a second document begins here"),
    "a list": ("- a\n", "mine.yaml:1: expected options, each a name, a colon, a space and a value, got a list"),
    "no space": ("a:1\n", "mine.yaml:1: expected options, each a name, a colon, a space and a value, got `a:1`"),
    "empty": ("", "mine.yaml: there is nothing in this file"),
    "comments alone": ("# x\n", "mine.yaml: there is nothing in this file"),
    "not UTF-8": ("a: 1\nb: M\xfc\n".encode("latin-1"), "mine.yaml:2: not UTF-8 text"),
    "a control character": ("a: 1\nb: \x07\n", "mine.yaml:2: a character that YAML does not allow"),
    "Python": ("a: !!python/object/apply:os.system [ls]\n", "mine.yaml:1: not valid YAML"),
    "a callback's name": (
        SFT + "  callbacks:\n    - class_path: KLControl\n      init_args:\n        celing: 3\n",
        "mine.yaml:16: celing: no such option; did you mean ceiling?",
    ),
    "a callback's value": (
        SFT + "  callbacks:\n    - KLControl\n    - 3\n",
        "mine.yaml:15: callbacks: expected a list",
    ),
    "a missing argument": (
        SFT + "  callbacks:\n    - class_path: SampleLogger\n",
        "SampleLogger needs prompts",
    ),
}


def refused(*args: str) -> str:
    with pytest.raises(PostTrainError) as problem:
        CommandLine(TREE, "fit").read(list(args))
    return str(problem.value)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_by_file_and_line(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, expected = MISTAKES[mistake]
    Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused("--config", "mine.yaml")
    assert said.startswith(expected) or (expected in said and ".yaml:" in said), said
    assert "\n" not in said


def test_the_overlay_with_the_mistake_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(SFT)
    Path("over.yaml").write_text("# an overlay\nmodel:\n  init_args:\n    optim:\n      warmup_rtio: 0.2\n")
    configs = ["--config", "mine.yaml", "--config", "over.yaml"]
    assert refused(*configs) == "over.yaml:5: warmup_rtio: no such option; did you mean warmup_ratio?"
    assert refused("--config", "over.yaml", "--config", "mine.yaml").startswith("over.yaml:2: model: of which method?")
    Path("mine.yaml").write_text(changed("max_steps: 3", "max_stps: 3"))
    assert refused(*configs).startswith("mine.yaml:12: max_stps")


def test_the_lines_of_anchors_and_merged_keys(tmp_path: Path) -> None:
    file = tmp_path / "anchors.yaml"
    file.write_text("trainer: &t\n  max_steps: 3\n  min_steps: 1\nother:\n  <<: *t\n  min_steps: 2\n")
    found = read_config(str(file))
    assert found.options["other"] == {"max_steps": 3, "min_steps": 2}
    assert found.lines["other", "max_steps"] == 2
    assert found.lines["other", "min_steps"] == 6


TYPED: dict[str, tuple[list[str], str]] = {
    "another method's": (
        ["--model.beta", "1"],
        "--model.beta: SFT has no such option; DPO, Distillation, GRPO, KTO, ORPO, OnlineDPO, PPO and SimPO",
    ),
    "of no callback chosen": (
        ["--trainer.callbacks.ceiling", "3"],
        "--trainer.callbacks.ceiling: an option of KLControl, which is not chosen; put --trainer.callbacks+=KLControl",
    ),
    "of another callback": (
        ["--trainer.callbacks+=KLControl", "--trainer.callbacks+=RewardLogger", "--trainer.callbacks.ceiling", "3"],
        "--trainer.callbacks.ceiling: an option of KLControl, and would go to RewardLogger, the last callback",
    ),
    "several values": (["--data.path", "a", "b"], "b: every value needs its option's name before it; several values"),
    "no value": (["--trainer.max_steps"], "--trainer.max_steps needs a value"),
    "no value before an option": (["--overwrite", "--name", "x"], "--overwrite needs a value"),
    "a group": (
        ["--model.policy.lora", "16"],
        "--model.policy.lora: expected options, each a name and a value or",
    ),
    "below a value": (
        ["--trainer.max_steps.x", "1"],
        "--trainer.max_steps.x: no such option; trainer.max_steps has",
    ),
    "rate": (["--lr", "1"], "--lr: no such option; did you mean --model.optim.lr?"),
    "rubbish": (["--zzzz", "1"], "--zzzz: no such option; --help lists the options"),
    "no text": (["--name", "a\udcff"], "'a\\udcff': not UTF-8 text"),
    "in JSON": (
        ["--model", '{"init_args": {"optm": {}}}'],
        "--model (init_args.optm): no such option; did you mean",
    ),
}


@pytest.mark.parametrize("mistake", TYPED)
def test_a_typed_mistake(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(SFT)
    args, expected = TYPED[mistake]
    assert refused("--config", "mine.yaml", *args).startswith(expected)


def test_a_config_may_be_json_with_its_escapes(tmp_path: Path) -> None:
    names = ["🙂", "\\🙂", "\\\\ud83d\\ude42", "ü\u2028"]
    for name in names:
        (tmp_path / "mine.json").write_text(json.dumps({"name": name, "trainer": {"max_steps": 3}}))
        assert read_config(str(tmp_path / "mine.json")).options["name"] == name


def test_of_a_list_that_is_given_twice_the_last_one_holds_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SFT)
    line = CommandLine(TREE, "fit")
    passed = line.read(["--config", str(tmp_path / "mine.yaml"), "--data.path", "a", "--data.path", "b"])
    assert '{"data": {"init_args": {"path": "b"}}}' in passed
    assert line.notes == ["--data.path is given twice, and the last one holds; for both write --data.path '[a, b]'"]
