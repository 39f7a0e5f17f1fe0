"""`lit-posttrain score`: rows come as they are scored, none is lost, and what is left out or not read is said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.cli import one_line
from helpers.runs import write

from lit_posttrain.cli.main import main
from lit_posttrain.models.policy import Scorer


class Batches:
    """Counts what is scored, in responses; is interrupted at a batch, if one is named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.responses: list[int] = []
        self.stop_at: int | None = None
        forward = Scorer.forward

        def watched(model: Scorer, batch: Any) -> torch.Tensor:
            if len(self.responses) == self.stop_at:
                raise KeyboardInterrupt
            self.responses.append(batch.num_responses)
            return forward(model, batch)

        monkeypatch.setattr(Scorer, "forward", watched)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    return Batches(monkeypatch)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return tiny.save_scorer(tiny.save_model(tmp_path / "base"), tmp_path / "scores")


@pytest.fixture
def command(model: Path) -> list[str]:
    """40 rows, 4 at a time; the 11th and the 12th have no response."""
    rows = [{"id": i, "prompt": f"what is {i}", "completion": "" if i in (10, 11) else f"a {i}"} for i in range(40)]
    return ["score", "--model", str(model), "--data", write(Path("rows.jsonl"), rows), "--batch_size", "4"]


def rows(file: str) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_a_stopped_command_goes_on_where_it_was(
    command: list[str], batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--out", "whole.jsonl"]) == 0
    assert batches.responses == [4] * 9 + [2]
    assert [row["scores"] is None for row in rows("whole.jsonl")] == [i in (10, 11) for i in range(40)]
    capsys.readouterr()
    batches.responses, batches.stop_at = [], 4
    assert main([*command, "--out", "parted.jsonl"]) == 130
    assert "stopped with 18 of 40 rows scored; they are kept in parted.jsonl.part" in capsys.readouterr().err
    assert sorted(str(file) for file in Path().glob("parted*")) == ["parted.jsonl.part"]
    part = Path("parted.jsonl.part")
    part.write_bytes(part.read_bytes()[:-7])  # as a crash within the last line leaves it
    batches.responses, batches.stop_at = [], None
    assert main([*command, "--out", "parted.jsonl"]) == 0
    assert "going on with parted.jsonl: 17 of 40 rows are scored" in capsys.readouterr().err
    assert batches.responses == [4] * 6 + [2]
    assert rows("parted.jsonl") == rows("whole.jsonl"), "to the bit"
    assert not part.exists()


def test_the_console_shows_rows_as_they_are_scored(
    command: list[str], batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    batches.stop_at = 2
    assert main(command) == 130
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == list(range(8))


@pytest.mark.parametrize("change", ["model", "data", "system", "precision"])
def test_scores_that_something_else_gave_are_not_taken(
    change: str, command: list[str], model: Path, batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    batches.stop_at = 1
    assert main([*command, "--out", "out.jsonl"]) == 130
    batches.stop_at = None
    if change == "model":
        os.utime(model / "model.safetensors", ns=(1, 1))
    elif change == "data":
        write(Path("rows.jsonl"), [{"prompt": "a", "completion": "b"}] * 40)
    else:
        command += ["--system", "be brief"] if change == "system" else ["--precision", "bfloat16"]
    capsys.readouterr()
    assert main([*command, "--out", "out.jsonl"]) == 2
    assert "out.jsonl.part holds what another model, other data or other options gave" in one_line(capsys)
    assert main([*command, "--out", "out.jsonl", "--overwrite", "true"]) == 0
    assert len(rows("out.jsonl")) == 40


def test_a_column_that_would_be_lost_is_said_before_the_work(
    command: list[str], batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("rows.jsonl"), [{"prompt": "a", "completion": "b"}] * 20 + [{"prompt": "a", "scores": None}])
    assert main(command) == 2
    assert "rows.jsonl:21: has a column `scores` already" in one_line(capsys)
    assert batches.responses == []


def test_a_file_of_which_nothing_can_be_scored_is_an_error(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("rows.jsonl"), [{"prompt": "what", "completion": ""}] * 3)
    assert main([*command, "--out", "out.jsonl"]) == 2
    assert "rows.jsonl: no row can be scored (" in (told := one_line(capsys))
    assert "empty" in told
    assert not list(Path().glob("out*"))


def test_what_is_not_read_is_said(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    tool = {"type": "function", "function": {"name": "zulu", "parameters": {}}}
    transcript = {"prompt": "\n\nHuman: what\n\nAssistant:", "completion": "a fox", "mood": "good"}
    write(Path("rows.jsonl"), [{"prompt": "what", "completion": "a fox", "tools": [tool]}, transcript])
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "rows.jsonl: the chat template has no place for tools (1 row): the model never sees it" in told
    assert "not used: " in told
    assert "mood (1 row)" in told
    assert main([*command, "--columns.prompt", "nowhere"]) == 2
    assert "--data" not in (told := one_line(capsys))
    assert "--columns.prompt" in told


READ = """
def read(row):
    return None if row["id"] % 4 == 1 else {"id": row["id"], "prompt": row["prompt"], "completion": row["completion"]}
"""


def test_rows_in_a_format_of_ones_own(
    command: list[str], batches: Batches, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that it leaves out have no line, also where a stopped command goes on."""
    given = [{"id": i, "prompt": f"what is {i}", "completion": "" if i in (10, 11) else f"a {i}"} for i in range(40)]
    assert main([*command, "--out", "plain.jsonl"]) == 0
    expected = [row for row in rows("plain.jsonl") if row["id"] % 4 != 1]
    monkeypatch.syspath_prepend(Path())
    Path("rows_to_score.py").write_text(READ)
    write(Path("rows.jsonl"), [{**row, "votes": [1]} for row in given])
    command += ["--format", "rows_to_score.read", "--out", "read.jsonl"]
    batches.responses, batches.stop_at = [], 3
    assert main(command) == 130
    assert "stopped with 14 of 30 rows scored" in capsys.readouterr().err
    batches.stop_at = None
    assert main(command) == 0
    assert "2 of 30 rows have no score" in capsys.readouterr().err
    assert [row["id"] for row in rows("read.jsonl")] == [row["id"] for row in expected]
    for row, other in zip(rows("read.jsonl"), expected, strict=True):
        assert row == {**other, "scores": other["scores"] and pytest.approx(other["scores"], abs=1e-5)}


def test_a_format_that_is_not_there_is_told_by_its_option(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--format", "rows_to_scare.read"]) == 2
    assert "--format rows_to_scare.read: no module `rows_to_scare`" in one_line(capsys)
