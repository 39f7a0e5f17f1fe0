"""`lit-posttrain generate`: rows come as they are drawn, none is lost, and a command that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import one_line
from helpers.runs import write

from lit_posttrain.chat import ChatModel
from lit_posttrain.cli import main


class Draws:
    """Counts the prompts that are answered; is interrupted at a call, if one is named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[int] = []
        self.stop_at: int | None = None
        answer = ChatModel.answer

        def watched(model: ChatModel, some: Sequence[Any], n: int, sampling: Any, first: int = 0) -> Any:
            if len(self.prompts) == self.stop_at:
                raise KeyboardInterrupt
            self.prompts.append(len(some))
            return answer(model, some, n, sampling, first)

        monkeypatch.setattr(ChatModel, "answer", watched)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    return Draws(monkeypatch)


@pytest.fixture
def command(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """40 prompts, answered at random, 16 at a time."""
    monkeypatch.chdir(tmp_path)
    asked = write(tmp_path / "asked.jsonl", [{"id": i, "prompt": f"what is {i}"} for i in range(40)])
    drawn = ["--max_new_tokens", "5", "--temperature", "1", "--batch_size", "4"]
    return ["generate", "--model", str(tiny_model), "--prompts", asked, *drawn]


def rows(file: str) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_the_console_shows_rows_as_they_are_drawn(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    draws.stop_at = 2
    assert main(command) == 130
    shown = capsys.readouterr()
    assert [json.loads(line)["id"] for line in shown.out.splitlines()] == list(range(32))
    assert "stopped with 32 of 40 prompts answered" in shown.err


def test_a_stopped_command_goes_on_where_it_was(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--out", "whole.jsonl"]) == 0
    draws.prompts, draws.stop_at = [], 2
    assert main([*command, "--out", "parted.jsonl"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not Path("parted.jsonl").exists()
    part = Path("parted.jsonl.part")
    part.write_bytes(part.read_bytes()[:-7])  # as a crash within the last line leaves it
    draws.prompts, draws.stop_at = [], None
    assert main([*command, "--out", "parted.jsonl"]) == 0
    assert "31 of 40 prompts are answered" in capsys.readouterr().err
    assert draws.prompts == [1, 8]
    assert rows("parted.jsonl") == rows("whole.jsonl")
    assert not part.exists()


def test_answers_that_other_options_left_are_not_taken(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    draws.stop_at = 1
    assert main([*command, "--out", "out.jsonl"]) == 130
    draws.stop_at = None
    capsys.readouterr()
    assert main([*command, "--seed", "1", "--out", "out.jsonl"]) == 2
    assert "out.jsonl.part holds answers that another model, other prompts or other options gave" in one_line(capsys)
    assert main([*command, "--seed", "1", "--out", "out.jsonl", "--overwrite", "true"]) == 0
    assert len(rows("out.jsonl")) == 40


def test_answers_of_which_nothing_is_kept_are_not_lost(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str]
) -> None:
    best = [*command, "--n", "2", "--out", "best.jsonl", "--keep", "best", "--rewards+=Repetition"]
    best[best.index("--max_new_tokens") + 1] = "1"
    assert main([*best, "--min_reward", "5"]) == 2
    assert "nothing is left to keep" in (told := one_line(capsys))
    assert "the answers are kept in best.jsonl.part" in told
    draws.prompts = []
    assert main([*best, "--cut_off", "true"]) == 0
    assert draws.prompts == [], "they are not drawn again"
    assert rows("best.jsonl")
    assert not Path("best.jsonl.part").exists()


def test_answers_that_are_all_cut_off_are_told_of_early(
    command: list[str], draws: Draws, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_posttrain.models.restore.Restored.eos_ids", property(lambda self: [999]))
    draws.stop_at = 1
    assert main(command) == 130
    assert "all 16 answers so far were cut off at 5 tokens; raise --max_new_tokens?" in capsys.readouterr().err
