"""The options of a subcommand reach its function as they were meant."""

from __future__ import annotations

from typing import Any

import pytest

from lit_posttrain.cli.commands import call
from lit_posttrain.cli.main import main
from lit_posttrain.errors import PostTrainError

got: list[dict[str, Any]] = []


def command(
    text: str | None = "x",
    texts: list[str] | None = None,
    mapping: dict[str, Any] | None = None,
    number: float = 1.0,
    switch: bool = False,
) -> int:
    """Do nothing."""
    got.append({"text": text, "texts": texts, "mapping": mapping, "number": number, "switch": switch})
    return 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("text=null", None),
        ('text="null"', "null"),
        ("text=1e3", "1e3"),
        ("text=[x]", "[x]"),
        ("text=", ""),
        ("text=🙂", "🙂"),
        ('text="hi"', '"hi"'),
        ('texts=[no, "1e3", "null"]', ["no", "1e3", "null"]),
        ('mapping={"a": "null", "b": "1e3", "c": null, "d": 1e-3}', {"a": "null", "b": "1e3", "c": None, "d": 1e-3}),
        ("number=1e-3", 1e-3),
        ("switch=true", True),
    ],
)
def test_values(typed: str, meant: Any) -> None:
    name = typed.partition("=")[0]
    for words in ([f"--{typed}"], [f"--{name}", typed.partition("=")[2]]):
        assert call(command, ["command", *words]) == 0
        assert got.pop()[name] == meant


@pytest.mark.parametrize("option", ["--config", "--print_config", "--txet"])
def test_no_option(option: str) -> None:
    with pytest.raises(PostTrainError):
        call(command, ["command", option, "x.yaml"])


def test_help_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(command, ["command", "--help"])
    shown = capsys.readouterr().out
    assert "--texts" in shown
    assert "config" not in shown


def test_the_list_of_configs_says_of_each_a_whole_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if ".yaml  " in line]
    assert len(listed) > 15
    assert [line for line in listed if line[-1] not in ".?"] == []
