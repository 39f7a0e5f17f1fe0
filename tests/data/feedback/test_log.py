"""What was acknowledged is in the file once, in its order, whatever was killed or filled up meanwhile."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lit_posttrain.data.feedback.log import FeedbackLog, read_decisions
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.files.sources import read_records
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError


def decision(name: str, **more: object) -> Decision:
    said = {"prompt": "What is tea?", "responses": [{"text": "Ein Getränk. ☕"}, {"text": "No idea."}], "ranks": [0, 1]}
    return Decision(id=name, item="i", annotator="ann", **{**said, **more})  # type: ignore[arg-type]  # by its fields


def ids(path: Path) -> list[str]:
    return [one.id for one in read_decisions(path)[0]]


def test_decisions_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "votes.jsonl"
    with FeedbackLog(path) as log:
        assert log.append(decision("a", reason="half a pair \ud83d", ranks=[0, None])) is True
        assert log.append(decision("b", columns={"id": 7, "topic": "tea"})) is True
        assert log.append(decision("a", reason="again")) is False
        assert "a" in log
        assert "c" not in log
    made, notes = read_decisions(path)
    assert made == [decision("a", reason="half a pair \ud83d", ranks=[0, None]), decision("b", columns=made[1].columns)]
    assert notes == []
    rows = [record.data for record in read_records(str(path))]
    assert [rows[1][name] for name in ("id", "columns.id", "topic")] == ["b", 7, "tea"]


def test_what_others_wrote_is_known(tmp_path: Path) -> None:
    one, other = (FeedbackLog(tmp_path / "votes.jsonl") for _ in range(2))
    assert other.append(decision("a"))
    assert not one.append(decision("a"))
    assert one.append(decision("b"))
    assert not other.append(decision("b"))
    assert ids(one.path) == ["a", "b"]


def test_undone_decisions_do_not_appear(tmp_path: Path) -> None:
    with FeedbackLog(tmp_path / "votes.jsonl") as log:
        for name in "abc":
            log.append(decision(name))
        log.append(Decision(id="u", item="i", annotator="ann", outcome="undone", undoes="b"))
        log.append(decision("d", reason='says "undone"'))
    assert ids(log.path) == ["a", "c", "d"]
    assert [record.data["id"] for record in read_records(str(log.path))] == ["a", "c", "d"]
    assert [record.line for record in read_records(str(log.path))] == [1, 3, 5]
    (tmp_path / "votes.json").write_bytes(log.path.read_bytes())
    assert [record.data["id"] for record in read_records(str(tmp_path / "votes.json"))] == ["a", "c", "d"]


def test_a_line_torn_anywhere_damages_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with FeedbackLog(path) as log:
        log.append(decision("a"))
        whole = path.read_bytes()
        log.append(decision("b", strength=2.5, rejected=[True, False], criteria={"x": [1, None]}, columns={"k": {}}))
    line = path.read_bytes()[len(whole) :]
    half = line.index(b"\xc3") + 1  # of a letter
    for cut in sorted({*range(1, len(line), 3), half, len(line) - 1}):
        path.write_bytes(whole + line[:cut])
        complete = cut == len(line) - 1  # but for its end
        assert ids(path) == (["a", "b"] if complete else ["a"])
        assert bool(read_decisions(path)[1]) != complete
        with FeedbackLog(path) as log:
            assert log.append(decision("c"))
            assert log.append(decision("b")) != complete
        assert sorted(ids(path)) == ["a", "b", "c"]
        path.write_bytes(line[:cut])  # the first line of all
        with FeedbackLog(path) as log:
            assert log.append(decision("c"))
        assert ids(path) == (["b", "c"] if complete else ["c"])
        records = [record.data["id"] for record in read_records(str(path))]
        assert records == ids(path)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with FeedbackLog(path) as log:
        log.append(decision("a"))
        before = path.read_bytes()
        with disk_of(len(before) + 50), pytest.raises(PostTrainError, match=r"votes.jsonl: cannot be written \(File"):
            log.append(decision("b"))
        assert path.read_bytes() == before
        assert log.append(decision("b"))  # once there is room
    assert ids(path) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    ['{"prompt": "a", "feedback": "good"}\n', '{"prompt": "a"', "votes\n", '[{"feedback": 1}]\n', '{"feedback": "x'],
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(PostTrainError, match=r"data.jsonl:1: not a file of decisions"):
        FeedbackLog(path)
    assert path.read_text().rstrip("\n") == content.rstrip("\n")
    with pytest.raises(PostTrainError, match="not a file of decisions"):
        read_decisions(path)


@pytest.mark.parametrize("name", ["votes.jsonl.gz", "votes.csv", "votes"])
def test_files_that_would_be_read_otherwise_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PostTrainError, match=r"name a file that ends with \.jsonl"):
        FeedbackLog(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with pytest.raises(PostTrainError, match=r"votes.jsonl: cannot be read \(No such file"):
        read_decisions(path)
    path.touch()
    assert read_decisions(path) == ([], [])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(PostTrainError, match="cannot be written"):
        FeedbackLog(tmp_path / "folder.jsonl")
    with FeedbackLog(path) as log:
        log.append(decision("a"))
        path.rename(tmp_path / "moved.jsonl")
        with pytest.raises(PostTrainError, match=r"cannot be written \(No such file"):
            log.append(decision("b"))
        path.write_bytes(b"")
        with pytest.raises(PostTrainError, match="was replaced or removed"):
            log.append(decision("b"))
    row = {**decision("a").row(), "ranks": [0]}
    path.write_text(json.dumps(decision("b").row()) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(PostTrainError, match=r"votes.jsonl:2: `ranks` does not have one value for each of 2 responses"):
        read_decisions(path)


_WRITER = """
import sys
from lit_posttrain.data.feedback.log import FeedbackLog
from lit_posttrain.data.feedback.record import Decision
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = FeedbackLog(path)
for number in range(count):
    said = [{"text": "a"}, {"text": "b" * (37 * number % 4000)}]
    log.append(Decision(id=f"{name}-{number}", item="i", annotator=name, responses=said, ranks=[0, 1]))
    print(number, flush=True)
"""


@pytest.mark.parametrize("killed", [0, 5])
def test_acknowledged_decisions_survive_kills(tmp_path: Path, killed: int) -> None:
    """Eight processes write, some of them until they are killed."""
    path, count = tmp_path / "votes.jsonl", 250
    counts = [1_000_000 if n < killed else count for n in range(8)]
    acknowledged: list[list[int]] = [[] for _ in counts]
    workers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, path, str(n), str(counts[n])], stdout=subprocess.PIPE)
        for n in range(8)
    ]

    def listen(worker: subprocess.Popen[bytes], heard: list[int], kill: bool) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            heard.append(int(line))
            if kill and len(heard) == 40:
                worker.kill()

    ears = [threading.Thread(target=listen, args=(w, acknowledged[n], n < killed)) for n, w in enumerate(workers)]
    try:
        for ear in ears:
            ear.start()
        for ear in ears:
            ear.join(60)
        assert [worker.wait(10) for worker in workers] == [-signal.SIGKILL] * killed + [0] * (8 - killed)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    FeedbackLog(path).close()
    made, torn = read_decisions(path)
    assert len(torn) <= killed
    assert len({one.id for one in made}) == len(made)
    for name, heard in enumerate(acknowledged):
        there = [int(one.id.split("-")[1]) for one in made if one.annotator == str(name)]
        assert there == list(range(len(there)))  # each once, in the writer's order
        assert heard == there[: len(heard)]
        assert len(heard) >= 40
        assert name < killed or len(there) == count


def test_several_decisions_are_written_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "votes.jsonl"
    with FeedbackLog(file) as log:
        assert log.append_all([]) == []
        assert log.append_all([decision("a"), decision("b"), decision("a")]) == [True, True, False]
        assert log.append_all([decision("b"), decision("c")]) == [False, True]
        assert log.append_all([decision("c")]) == [False]
        before = file.read_bytes()

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(PostTrainError, match="No space left"):
                log.append_all([decision("d"), decision("e")])
        assert file.read_bytes() == before
        assert log.append_all([decision("d"), decision("e")]) == [True, True]
    assert [one.id for one in read_decisions(file)[0]] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 5),
        ("prompt", ["Q"]),
        ("responses", {"text": "A"}),
        ("responses", [{"text": 5}, {"text": "B"}]),
        ("ranks", [True, 0]),
        ("rejected", [1, 0]),
        ("strength", True),
        ("criteria", ["honest"]),
        ("criteria", {"honest": [True, 1]}),
        ("criteria", {"honest": 3}),
        ("messages", "A"),
        ("order", [None, 1]),
        ("order", ["a", 1]),
        ("order", [False, True]),
        ("judge", "x"),
        ("reason", 5),
        ("seconds", "5"),
        ("seconds", True),
        ("time", "yesterday"),
        ("columns", ["a"]),
    ],
)
def test_fields_of_another_kind_are_named(field: str, value: object) -> None:
    row = json.loads(json.dumps(decision("a").row() | {field: value}))
    with pytest.raises(BadRow, match=f"`{field}.*`"):
        Decision.of(row)
    assert Decision.of(decision("a").row() | {"reason": None, "columns": None}) == decision("a")
