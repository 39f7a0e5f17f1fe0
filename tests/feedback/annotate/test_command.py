"""`lit-posttrain annotate`: mistakes are one line before anything is served, and items are what the files say."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import locked_elsewhere

from lit_posttrain.cli.main import main
from lit_posttrain.data.feedback.log import FeedbackLog
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.formats.comparisons import PreferenceColumns
from lit_posttrain.errors import PostTrainError
from lit_posttrain.feedback.annotate.serve import alone
from lit_posttrain.feedback.annotate.tasks import read_tasks

ROWS = [{"prompt": "What is tea?", "responses": ["A drink.", "No idea.", "Leaves."]}]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrote("r.jsonl", ROWS)
    wrote("other.jsonl", ROWS)

    def serve(*_: object, **__: object) -> None:
        raise AssertionError("the server was started")

    monkeypatch.setattr("uvicorn.Server.run", serve)


def wrote(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return name


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["annotate", "--data", "r.jsonl", "--out", "v.jsonl", "--port", "0", *options]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    return told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mode", "rate"], "--mode rate and --criteria go together"),
        (["--criteria", "[helpful]"], "--mode rate and --criteria go together"),
        (["--mode", "rate", "--criteria", "[a, a]"], "name each criterion once"),
        (["--mode", "sort"], "--mode"),
        (["--overlap", "-1"], "--overlap is -1"),
        (["--overlap", "1"], "needs more people than --annotators names (1)"),
        (["--annotators", "[ann, ann]"], "name each person once"),
        (["--annotators", "['']"], "is no name"),
        (["--annotators", "['<script>']"], "is no name"),
        (["--guidelines", "none.md"], "--guidelines none.md: cannot be read"),
        (["--gold", "none.jsonl"], "none.jsonl"),
        (["--gold", "r.jsonl", "--mode", "write"], "--gold says which response is better"),
        (["--port", "70000"], "--port is 70000"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid --port 0"),
        (["--data", "none.jsonl"], "none.jsonl"),
        (["--mode", "pair"], "r.jsonl:1: 3 responses, and --mode pair compares two; pass --mode rank"),
        (["--out", "r.jsonl"], "--out r.jsonl: a file of the data"),
        (["--out", "other.jsonl"], "other.jsonl:1: not a file of decisions"),
        (["--out", "."], "--out .: a folder"),
        (["--out", "r.jsonl/v.jsonl"], "cannot be written"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], options: list[str], told: str) -> None:
    assert told in refused(capsys, *options)
    assert json.loads(Path("r.jsonl").read_text()) == ROWS[0]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "a?", "responses": ["b"]}], "one response"),
        ([{"prompt": "a?", "responses": ["b", "b"]}], "equal responses"),
        (["{"], "bad.jsonl:1"),
        ([ROWS[0], '{"prompt": "a?", "resp'], "bad.jsonl:2"),
        ([{"prompt": "a?"}], "bad.jsonl"),
    ],
)
def test_files_with_nothing_to_decide(capsys: pytest.CaptureFixture[str], rows: list[Any], told: str) -> None:
    assert told in refused(capsys, "--data", wrote("bad.jsonl", rows))


def test_a_second_server_on_one_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with locked_elsewhere(Path("v.jsonl.lock")):
        assert "v.jsonl: another server keeps its decisions there" in refused(capsys)
    with alone(Path("v.jsonl")):
        assert Path("v.jsonl.lock").exists()
    assert not Path("v.jsonl.lock").exists()


@pytest.mark.parametrize(
    ("made", "options", "told"),
    [
        ({"ranks": [0, 1, 2]}, ["--mode", "write"], True),
        ({"ranks": [0, 1, 2]}, ["--mode", "rate", "--criteria", "[helpful]"], True),
        ({"criteria": {"honest": [1, 2, 3]}}, ["--mode", "rate", "--criteria", "[helpful]"], True),
        ({"criteria": {"honest": [1, 2, 3]}, "ranks": [2, 1, 0]}, ["--mode", "rank"], True),
        ({"messages": [{"role": "assistant", "content": "A"}]}, ["--mode", "rank"], True),
        ({"ranks": [0, 1, 2]}, ["--mode", "rank"], False),
        ({"criteria": {"honest": [1, 2, 3]}}, ["--mode", "rate", "--criteria", "[honest]"], False),
    ],
)
def test_decisions_of_another_mode_are_not_those_that_are_asked(
    capsys: pytest.CaptureFixture[str], made: dict[str, Any], options: list[str], told: bool
) -> None:
    (task,) = read_tasks("r.jsonl", "rank")
    with FeedbackLog("v.jsonl") as votes:
        votes.append(Decision("v1", task.id, "ann", task.prompt, task.responses, **made))
    if told:
        assert "v.jsonl: has decisions on these items in another --mode" in refused(capsys, *options)
    else:
        with pytest.raises(AssertionError, match="the server was started"):
            main(["annotate", "--data", "r.jsonl", "--out", "v.jsonl", "--port", "0", *options])


def test_a_secret_that_can_be_guessed_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_POSTTRAIN_ANNOTATE_SECRET", "short")
    assert "LIT_POSTTRAIN_ANNOTATE_SECRET can be guessed; give it 16 random" in refused(capsys)


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: Address already in use" in refused(capsys, "--port", port)


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    without = lambda name, *more: None if name == "nh3" else found(name, *more)  # noqa: E731  # a patch in one line
    monkeypatch.setattr("lit_posttrain.cli.commands.annotate.find_spec", without)
    assert 'nh3 is not installed, which the page needs: pip install "lit-posttrain[feedback]"' in refused(capsys)


def test_another_file_of_decisions_can_be_shared_with_a_judge() -> None:
    with alone(Path("v.jsonl")), FeedbackLog("v.jsonl"), FeedbackLog("v.jsonl"):  # which a judge appends to meanwhile
        pass


def test_every_mode_reads_what_it_can_show() -> None:
    wrote("prompts.jsonl", [{"prompt": "a?"}, {"prompt": "b?", "completion": "c"}])
    assert [len(task.responses) for task in read_tasks("r.jsonl", "rank")] == [3]
    assert [len(task.responses) for task in read_tasks("prompts.jsonl", "write")] == [0, 1]
    with pytest.raises(PostTrainError, match=r"prompts\.jsonl"):
        read_tasks("prompts.jsonl", "rank")
    with pytest.raises(PostTrainError, match="asked"):
        read_tasks("prompts.jsonl", "write", columns=PreferenceColumns(prompt="asked"))


def test_known_answers_are_ranks_in_the_order_of_the_responses() -> None:
    ranked = {
        "prompt": "a?",
        "responses": [{"text": "x", "rank": 1}, {"text": "y", "rank": 0}, {"text": "z", "rank": 1}],
    }
    tasks = read_tasks("r.jsonl", "rank", wrote("gold.jsonl", [ranked]))
    assert [task.gold for task in tasks] == [None, [1, 0, 1]]
    judged = {"prompt": "b?", "response1": "bad", "response2": "good", "label": 2}
    (task,) = [one for one in read_tasks("r.jsonl", "rank", wrote("judged.jsonl", [judged])) if one.gold]
    ranks = {one["text"]: rank for one, rank in zip(task.responses, task.gold or [], strict=True)}
    assert ranks == {"bad": 1, "good": 0}


def test_known_answers_are_read_as_items_are() -> None:
    """Rows of one file may differ in their columns, and neighbouring rows of ratings are one item."""
    pair = {"prompt": "c?", "chosen": "good", "rejected": "bad"}
    judged = {"prompt": "b?", "response1": "bad", "response2": "good", "label": 2}
    tasks = read_tasks("r.jsonl", "rank", wrote("mixed.jsonl", [pair, judged]))
    assert [task.gold for task in tasks] == [None, [0, 1], [1, 0]]
    marks = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
    rated = [
        {"prompt": "d?", "response": said, "helpfulness": mark, **marks} for said, mark in (("bad", 1), ("good", 3))
    ]
    assert [task.gold for task in read_tasks("r.jsonl", "rank", wrote("rated.jsonl", rated))] == [None, [1, 0]]


def test_known_answers_that_say_nothing_are_refused() -> None:
    tie = {"prompt": "b?", "response1": "bad", "response2": "good", "label": 0}
    with pytest.raises(PostTrainError, match=r"tie\.jsonl:1: --gold needs rows"):
        read_tasks("r.jsonl", "rank", wrote("tie.jsonl", [tie]))


def test_real_judgements(real_data: Path) -> None:
    tasks = read_tasks(str(real_data / "pandalm/dev.jsonl"), "pair")
    assert len(tasks) > 100
    assert all(len(task.responses) == 2 and task.gold is None for task in tasks)
    assert not [task for task in tasks if "annotator1" in json.dumps(task.prompt)]
