"""Ways to write one and the same value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.cli import fit, one_line

from lit_posttrain.cli.main import main
from lit_posttrain.cli.parsing.values import as_yaml
from lit_posttrain.cli.training import PostTrainCLI
from lit_posttrain.errors import PostTrainError

ONE: dict[str, tuple[str, dict[str, Any], str]] = {
    "callbacks": ("SampleLogger", {"prompts": ["hi"], "max_new_tokens": 2}, "samples.jsonl"),
    "logger": ("CSVLogger", {"save_dir": "runs/one/own"}, "own/lightning_logs/version_0/metrics.csv"),
}


@pytest.mark.parametrize("way", ["typed", "a name", "a mapping", "a list"])
@pytest.mark.parametrize("option", ONE)
def test_one_where_several_may_be(option: str, way: str, chats: Path, tiny_model: Path) -> None:
    name, arguments, made = ONE[option]
    spec = {"class_path": name, "init_args": arguments}
    written = {"a name": name, "a mapping": spec, "a list": [spec]}
    Path("one.yaml").write_text(yaml.safe_dump({"trainer": {option: written.get(way)}}))
    line = [f"--trainer.{option}", name] if way == "typed" else ["--config", "one.yaml"]
    if way in ("typed", "a name"):
        line += [f"--trainer.{option}.{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in arguments.items()]
    assert fit(chats, tiny_model, "--name", "one", "--trainer.max_steps", "1", *line) == 0
    assert (Path("runs/one") / made).exists()
    assert main(["fit", "--resume", "one", "--trainer.max_steps", "2", "--trainer.max_epochs", "2"]) == 0


def test_a_home_folder(chats: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(chats.parent / "home"))
    Path("home").mkdir()
    chats.rename("home/chats.jsonl")
    Path("home.yaml").write_text("runs: ~/runs\ndata: {init_args: {path: [~/chats.jsonl]}}\n")
    here = ["fit", "--config", "sft.yaml", "--config", "home.yaml", "--name", "one", "--trainer.max_steps", "1"]
    here += ["--model.policy.path", str(tiny_model), "--data.val_fraction", "0.3", "--wandb.mode", "disabled"]
    assert main(here) == 0
    assert main([*here, "--resume", "auto"]) == 0
    assert Path("home/runs/one/last.ckpt").exists()
    more = ["--data.path", "[~/chats.jsonl]", "--runs=~/more", "--ckpt_path=~/runs/one", "--name", "two"]
    assert (
        main(
            [
                "fit",
                "--config",
                "home/runs/one/config.yaml",
                "--trainer.max_steps",
                "2",
                "--trainer.max_epochs",
                "2",
                *more,
            ]
        )
        == 0
    )
    assert Path("home/more/two/last.ckpt").exists()
    audit = ["audit", "--config", "home/runs/one/config.yaml", "--ckpt_path=~/runs/one", "--out=~/audit.json"]
    assert main(audit) == 0
    assert Path("home/audit.json").exists()
    assert main(["audit", "--resume", "one", "--runs=~/runs"]) == 0
    assert {file.name for file in Path().iterdir()} == {"cache", "home", "home.yaml"}


def test_prompts_stay_as_they_are(chats: Path, tiny_model: Path) -> None:
    prompts = ["chats.jsonl", "/" + "long" * 80 + "/", "~/x"]
    line = ["--trainer.callbacks+=SampleLogger", f"--trainer.callbacks.prompts={json.dumps(prompts)}"]
    assert fit(chats, tiny_model, "--name", "one", *line, "--trainer.callbacks.max_new_tokens", "2") == 0
    (callback,) = yaml.safe_load(Path("runs/one/config.yaml").read_text())["trainer"]["callbacks"]
    assert callback["init_args"]["prompts"] == prompts


def test_a_printed_config_is_as_it_was_written(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variables = {"a": "null", "b": ["1e3", "🙂"], "c": None}
    line = ["--name", '"null"', "--model.policy.template_variables", json.dumps(variables)]
    with pytest.raises(SystemExit):
        main(["fit", "--config", "sft.yaml", *line, "--print_config"])
    text = capsys.readouterr().out
    assert "\ue000" not in text
    printed = yaml.safe_load(text)
    assert printed["name"] == "null"
    assert printed["model"]["init_args"]["policy"]["template_variables"] == variables


OWN = """
import lightning.pytorch as pl

class Own(pl.Callback):
    def __init__(
        self, text: str | None = "x", items: list[str] | str = "y", number: float = 1.0, more: dict | None = None
    ):
        self.got = [text, items, number, more]
"""
GIVEN = {"text": "null", "items": ["no", "1e3", "null"], "number": 1e-5, "more": {"a": "null", "b": "1e3", "c": None}}


@pytest.mark.parametrize("way", ["typed", "a config", "a mapping"])
def test_values_of_a_class_of_ones_own(
    way: str, tiny_model: Path, chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(chats.parent)
    Path("of_ones_own.py").write_text(OWN)
    config = {"trainer": {"callbacks": [{"class_path": "of_ones_own.Own", "init_args": GIVEN}]}}
    Path("own.yaml").write_text(as_yaml(config))
    base = ["--model", "SFT", "--model.policy.path", str(tiny_model), "--data", "ConversationData", "--data.path", "x"]
    typed = [f"--trainer.callbacks.{name}={json.dumps(value)}" for name, value in GIVEN.items()]
    args: dict[str, Any] = {
        "typed": [*base, "--trainer.callbacks+=of_ones_own.Own", *typed],
        "a config": [*base, "--config", "own.yaml"],
        "a mapping": {
            "model": {"class_path": "SFT", "init_args": {"policy": {"path": str(tiny_model)}}},
            "data": {"class_path": "ConversationData", "init_args": {"path": "x"}},
            **config,
        },
    }
    cli: Any = PostTrainCLI(args=args[way], run=False, tracking=False)
    (own,) = [callback for callback in cli.trainer.callbacks if type(callback).__name__ == "Own"]
    assert own.got == list(GIVEN.values())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"class_path": "SFT", "init_args": {"warm_up": 1}}, "args (model.init_args.warm_up): no such option; did you"),
        ({"class_path": "SFT", "init_args": {"optim": {"warmup_ratio": "much"}}}, "expected a number, got much"),
        ({"class_path": "SFTT"}, "args (model.class_path) SFTT: there is no such method; did you mean SFT?"),
    ],
)
def test_mistakes_in_a_mapping(model: dict[str, Any], said: str) -> None:
    with pytest.raises(PostTrainError) as found:
        PostTrainCLI(args={"model": model}, run=False, tracking=False)
    assert said in str(found.value)


@pytest.mark.parametrize(("precision", "meant"), [("fp16", "16-mixed"), ("bf16-mixd", "bf16-mixed")])
def test_a_precision_that_is_called_otherwise(
    precision: str, meant: str, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", "sft.yaml", "--data.path", str(chats), "--trainer.precision", precision]) == 2
    assert f"got {precision}; did you mean {meant}?" in one_line(capsys)


def test_help_of_a_config_that_names_its_classes_alone(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("short.yaml").write_text("model: DPO\ndata: PreferenceData\n")
    assert main(["fit", "--config", "short.yaml", "--help"]) == 0
    assert "--model.label_smoothing" in capsys.readouterr().out
