"""`lit-posttrain feedback convert`: what it writes, tells and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.runs import write

from lit_posttrain.cli.main import main
from lit_posttrain.data.feedback.log import FeedbackLog, read_decisions
from lit_posttrain.data.feedback.record import Decision, item_id

ASKED = [{"role": "user", "content": "Q"}]
SAID = [{"text": "A"}, {"text": "B"}]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with FeedbackLog("votes.jsonl") as log:
        for name, ranks in (("a", [0, 1]), ("b", [1, 0]), ("c", [0, 0]), ("d", [1, 0])):
            log.append(Decision(name, item_id(ASKED, SAID), f"by {name}", ASKED, SAID, ranks=[*ranks]))
        log.append(Decision("e", "i", "by d", outcome="undone", undoes="d"))


def convert(*options: str) -> int:
    return main(["feedback", "convert", *options])


@pytest.mark.parametrize("to", ["argilla", "label_studio_ranker"])
def test_there_and_back(to: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--data", "votes.jsonl", "--to", to, "--out", "tool.json") == 0
    assert "wrote 1 item with 3 votes to tool.json" in capsys.readouterr().out
    assert convert("--data", "tool.json", "--to", "records", "--out", "back.jsonl") == 0
    found, notes = read_decisions("back.jsonl")
    assert [(one.annotator, one.ranks) for one in found] == [("by a", [0, 1]), ("by b", [1, 0]), ("by c", [0, 0])]
    assert {one.source for one in found} == {"tool.json:1"}
    assert notes == []


def test_what_a_format_cannot_hold_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--data", "votes.jsonl", "--to", "label_studio_pairwise", "--out", "pairs.json") == 0
    told = capsys.readouterr()
    assert told.err == "Label Studio's Pairwise has no place for 1 ties\n"
    assert "labeling interface of the project: <View><Text name=" in told.out
    (task,) = json.loads(Path("pairs.json").read_text())
    assert len(task["annotations"]) == 2


def test_responses_without_votes_are_sent_to_be_judged(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("responses.jsonl"), [{"prompt": f"Q{n}", "responses": SAID, "topic": "tea"} for n in range(3)])
    assert convert("--data", "responses.jsonl", "--to", "label_studio_ranker", "--out", "tasks.json") == 0
    assert "wrote 3 items to tasks.json" in capsys.readouterr().out
    tasks = json.loads(Path("tasks.json").read_text())
    assert [one["data"]["prompt"] for one in tasks] == ["Q0", "Q1", "Q2"]


def test_the_votes_of_a_folder_are_those_of_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("all").mkdir()
    Path("all/one.jsonl").write_bytes(Path("votes.jsonl").read_bytes())
    with FeedbackLog("all/two.jsonl") as log:
        log.append(Decision("f", item_id(ASKED, SAID), "by f", ASKED, SAID, ranks=[1, 0]))
    assert convert("--data", "all", "--to", "argilla", "--out", "tool.json") == 0
    assert "wrote 1 item with 4 votes to tool.json" in capsys.readouterr().out
    write(Path("all/pairs.jsonl"), [{"prompt": "Q", "chosen": "A", "rejected": "B"}])
    assert convert("--data", "all", "--to", "argilla", "--out", "x") == 2
    assert "pairs.jsonl: has no votes, which other files of all have" in capsys.readouterr().err


def test_buckets_are_named_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"prompt": "Q", "items": [{"id": "x", "body": "A"}, {"id": "y", "body": "B"}]}
    result = [{"type": "ranker", "value": {"ranker": {"no": ["x"], "yes": ["y"]}}}]
    write(
        Path("tasks.jsonl"), [{"id": 1, "data": data, "annotations": [{"id": 2, "completed_by": 3, "result": result}]}]
    )
    assert convert("--data", "tasks.jsonl", "--to", "records", "--out", "out.jsonl") == 2
    assert "tasks.jsonl:1: nothing says which of the buckets no, yes is better" in capsys.readouterr().err
    assert convert("--data", "tasks.jsonl", "--to", "records", "--out", "out.jsonl", "--buckets", "[yes, no]") == 0
    assert read_decisions("out.jsonl")[0][0].ranks == [1, 0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data", "none.jsonl", "--to", "argilla", "--out", "x"], "none.jsonl: no such file"),
        (["--data", "pairs.jsonl", "--to", "records", "--out", "x"], "pairs.jsonl: neither votes nor an export of"),
        (["--data", "votes.jsonl", "--to", "argila", "--out", "x"], "--to"),
        (["--data", "votes.jsonl", "--to", "argilla", "--out", "votes.jsonl"], "--out votes.jsonl: a file of the data"),
        (["--data", "empty.json", "--to", "argilla", "--out", "x"], "no votes; empty.json:1: left out, nobody has"),
    ],
)
def test_mistakes_are_one_line(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("pairs.jsonl"), [{"prompt": "Q", "chosen": "A", "rejected": "B"}])
    Path("empty.json").write_text(json.dumps([{"data": {"prompt": "Q", "items": []}, "annotations": []}]))
    assert convert(*options) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1
    assert not Path("x").exists()


def test_other_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["feedback"]) == 0
    assert "lit-posttrain feedback convert" in capsys.readouterr().out
    assert main(["feedback", "export"]) == 2
    assert "feedback export: no such command" in capsys.readouterr().err
