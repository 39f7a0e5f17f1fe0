"""The server without a browser: who gets in, what is kept, what is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from starlette.testclient import TestClient

from lit_posttrain.data.feedback.log import FeedbackLog, read_decisions
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.errors import PostTrainError
from lit_posttrain.feedback.annotate.answers import Question
from lit_posttrain.feedback.annotate.board import Board
from lit_posttrain.feedback.annotate.guard import HEADERS, ORGANISER, Tokens
from lit_posttrain.feedback.annotate.routes import LARGEST_BODY, application
from lit_posttrain.feedback.annotate.stats import Figures
from lit_posttrain.feedback.annotate.tasks import Mode, Task, read_tasks

BASE = "http://127.0.0.1:8765"


def task(n: int, count: int = 3, gold: list[int | None] | None = None) -> Task:
    prompt = [{"role": "user", "content": f"What is {n}?"}]
    responses = [{"text": f"Answer {k} to {n}", "model": f"model-{k}"} for k in range(count)]
    return Task(prompt, responses, {"topic": "numbers"}, f"r.jsonl:{n}", gold)


class Server:
    """A server in this process, with its file."""

    def __init__(self, out: Path, tasks: list[Task], question: Question) -> None:
        self.out, self.tasks, self.question = out, tasks, question
        self.tokens = Tokens(["ann", "ben"], "secret")
        self.start()

    def start(self) -> None:
        """Anew, from the file alone."""
        self.log = FeedbackLog(self.out)
        made = read_decisions(self.out)[0] if self.out.stat().st_size else []
        self.board = Board(self.tasks, made, overlap=1.0)
        self.app = application(self.board, self.log, self.question, self.tokens)

    def client(self, name: str) -> TestClient:
        made = TestClient(self.app, base_url=BASE, headers={"origin": BASE})
        assert made.get(self.tokens.link("", name)).status_code == 200
        return made

    def kept(self) -> list[Decision]:
        return read_decisions(self.out)[0]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "votes.jsonl", [task(n) for n in range(3)], Question("rank"))
    yield made
    made.log.close()


def vote(client: TestClient, number: str, **changes: Any) -> Any:
    """Decide on the item at hand."""
    item = client.get("/api/item").json()["item"]
    said = {"id": f"vote-{number}", "item": item["id"], "outcome": "verdict", "order": item["order"], "seconds": 3.21}
    return client.post("/api/decision", json={**said, "ranks": [1, 0, None], "reason": " short ", **changes})


@pytest.mark.parametrize(
    "path", ["/", "/stats", "/page/app.js", "/page/style.css", "/api/item", "/api/stats", "/nowhere", "/page/"]
)
def test_nothing_is_served_without_a_token(server: Server, path: str) -> None:
    stranger = TestClient(server.app, base_url=BASE, headers={"origin": BASE})
    for given in (stranger, TestClient(server.app, base_url=BASE, cookies={"annotate-8765": "0" * 32})):
        answer = given.get(path)
        assert answer.status_code == 401
        assert "link" in answer.text
        assert given.post(path, json={}).status_code == 401
        assert given.get(f"{path}?token=wrong").status_code == 401
        assert given.get(f"{path}?token=").status_code == 401
    assert not server.out.read_text()


def test_a_link_becomes_a_cookie_that_no_script_reads(server: Server) -> None:
    answer = TestClient(server.app, base_url=BASE).get(server.tokens.link("", "ann"))
    assert server.tokens.link("", "ann").split("=")[1] not in answer.text
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("annotate-8765=")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_every_answer_has_the_headers(server: Server) -> None:
    client = server.client("ann")
    for path in ("/", "/page/app.js", "/api/item", "/nowhere"):
        answer = client.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert (
        TestClient(server.app, base_url=BASE)
        .get("/")
        .headers["content-security-policy"]
        .startswith("default-src 'none'")
    )


def test_statistics_are_the_organisers_and_decisions_the_annotators(server: Server) -> None:
    ann, organiser = server.client("ann"), server.client(ORGANISER)
    assert ann.get("/api/stats").status_code == ann.get("/stats").status_code == 401
    assert organiser.get("/api/item").status_code == organiser.get("/").status_code == 401
    assert organiser.get("/stats").status_code == organiser.get("/page/style.css").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8765/page/", "127.0.0.1:8765/stats", "127.0.0.1:8765/page/?x="])
def test_a_host_header_opens_nothing(server: Server, host: str) -> None:
    for name, path in (("ann", "/api/stats"), (ORGANISER, "/api/item")):
        token = server.tokens.link("", name).split("=")[1]
        cookies = {f"{kind}-{port}": token for kind in ("annotate", "statistics") for port in (80, 8765)}
        stranger = TestClient(server.app, base_url=BASE, headers={"host": host}, cookies=cookies)
        assert stranger.get(path).status_code == 401


def test_a_decision_is_a_record(server: Server) -> None:
    client = server.client("ann")
    shown = client.get("/api/item").json()["item"]
    answer = vote(client, "00000001", strength=2, rejected=[False, False, True])
    assert answer.status_code == 200
    assert answer.json()["progress"]["done"] == 1
    assert answer.json()["item"]["id"] != shown["id"]
    (kept,) = server.kept()
    of = server.board.tasks[shown["id"]]
    assert (kept.annotator, kept.item, kept.outcome, kept.source) == ("ann", of.id, "verdict", of.source)
    assert (kept.ranks, kept.rejected, kept.strength) == ([1, 0, None], [False, False, True], 2)
    assert (kept.reason, kept.seconds, kept.order) == ("short", 3.2, shown["order"])
    assert (kept.prompt, kept.responses, kept.columns) == (of.prompt, of.responses, of.columns)
    assert kept.time.endswith("Z")


def test_annotators_do_not_see_which_model_answers(server: Server) -> None:
    client = server.client("ann")
    assert "model-" not in client.get("/api/item").text
    answer = vote(client, "00000001")
    assert "model-" not in answer.text
    undone = client.post(
        "/api/undo", json={"id": "undo-0000001", "item": answer.json()["last"]["item"], "undoes": "vote-00000001"}
    )
    shown = undone.json()["before"]
    assert set(shown) == {"ranks", "rejected", "strength", "criteria", "turns", "reason", "seconds"}
    for hidden in ("model-", "r.jsonl", "numbers"):
        assert hidden not in undone.text


def test_an_undo_whose_answer_was_lost_tells_again_what_was_decided(server: Server) -> None:
    client = server.client("ann")
    item = client.get("/api/item").json()["item"]["id"]
    said = {"id": "vote-00000001", "item": item, "outcome": "skipped", "reason": "half a pair: \ud800"}
    last = client.post("/api/decision", content=json.dumps(said)).json()["last"]
    undo = {"id": "undo-0000001", "item": last["item"], "undoes": last["id"]}
    for _ in range(2):
        assert client.post("/api/undo", json=undo).json()["before"]["reason"] == "half a pair: ?"


def test_a_decision_is_not_taken_for_that_of_another_link(server: Server) -> None:
    client = server.client("ann")
    assert vote(client, "00000001", annotator="ann").status_code == 200
    client.get(server.tokens.link("", "ben"))  # opened in the same browser
    answer = vote(client, "00000002", annotator="ann")
    assert (answer.status_code, answer.json()["belongs_to"]) == (409, "ben")
    undo = {"id": "undo-0000001", "annotator": "ann", "item": server.kept()[0].item, "undoes": "vote-00000001"}
    assert client.post("/api/undo", json=undo).status_code == 409
    assert [one.annotator for one in server.kept()] == ["ann"]


def test_a_decision_that_is_sent_twice_is_kept_once(server: Server) -> None:
    client = server.client("ann")
    first = vote(client, "00000001")
    item = server.kept()[0].item
    again = vote(client, "00000001", item=item)
    assert again.status_code == 200
    assert again.json()["progress"] == first.json()["progress"]
    assert vote(client, "00000002", item=item).status_code == 409  # another decision on the same item
    assert len(server.kept()) == 1


def test_a_decision_that_is_undone_is_gone_and_comes_back_to_be_changed(server: Server) -> None:
    client = server.client("ann")
    last = vote(client, "00000001", reason="first thought").json()["last"]
    undo = {"id": "undo-0000001", "item": last["item"], "undoes": last["id"]}
    answer = client.post("/api/undo", json=undo).json()
    assert answer["item"]["id"] == last["item"]
    assert (answer["before"]["ranks"], answer["before"]["reason"]) == ([1, 0, None], "first thought")
    assert answer["last"] is None
    assert server.kept() == []
    assert client.post("/api/undo", json=undo).json()["progress"]["done"] == 0  # sent again
    assert client.post("/api/undo", json={**undo, "id": "undo-0000002"}).status_code == 409
    assert server.client("ben").post("/api/undo", json={**undo, "id": "undo-0000003"}).status_code == 409
    assert vote(client, "00000003").status_code == 200
    assert [one.id for one in server.kept()] == ["vote-00000003"]


def test_a_restart_goes_on_from_the_file_alone(server: Server) -> None:
    client = server.client("ann")
    vote(client, "00000001")
    shown = vote(client, "00000002").json()
    server.log.close()
    with server.out.open("ab") as stream:
        stream.write(b'{"feedback": 1, "id": "torn')  # a kill in the middle of a line
    server.start()
    after = server.client("ann").get("/api/item").json()
    assert (after["item"], after["progress"], after["last"]) == (shown["item"], shown["progress"], shown["last"])
    assert vote(server.client("ann"), "00000002", item=server.kept()[1].item).status_code == 200  # sent again
    assert vote(server.client("ann"), "00000003").status_code == 200
    assert [one.id for one in server.kept()] == ["vote-00000001", "vote-00000002", "vote-00000003"]


def test_a_first_line_that_was_torn_keeps_nobody_from_beginning(server: Server) -> None:
    server.log.close()
    server.out.write_bytes(b'{"feedback": 1, "id": "to')
    server.start()
    assert vote(server.client("ann"), "00000001").status_code == 200
    assert [one.id for one in server.kept()] == ["vote-00000001"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ranks": [0, 1]}, "ranks"),
        ({"ranks": [0, True, 1]}, "ranks"),
        ({"ranks": [0, -1, 1]}, "ranks"),
        ({"ranks": "012"}, "ranks"),
        ({"ranks": [0, None, None]}, "rank at least two"),
        ({"ranks": None}, "rank at least two"),
        ({"order": [0, 0, 1]}, "order"),
        ({"order": "210"}, "order"),
        ({"order": ["a", 1, 2]}, "order"),
        ({"strength": True}, "strength"),
        ({"strength": 9}, "strength"),
        ({"strength": [1]}, "strength"),
        ({"rejected": [True]}, "rejected"),
        ({"outcome": "undone"}, "outcome"),
        ({"id": "short"}, "id"),
        ({"id": "a b c d e f g"}, "id"),
        ({"id": 123456789}, "id"),
        ({"item": "unknown"}, "not among those"),
        ({"item": ["x"]}, "not among those"),
        ({"reason": 5}, "reason"),
        ({"source": "ben"}, "unknown fields 'source'"),
    ],
)
def test_what_the_page_would_not_send_is_refused(server: Server, changes: dict[str, Any], told: str) -> None:
    answer = vote(server.client("ann"), "00000001", **changes)
    assert answer.status_code == 422
    assert told in answer.json()["error"]
    assert not server.out.read_text()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"item": NaN}'])
def test_what_is_no_json_object_is_refused(server: Server, body: bytes) -> None:
    client = server.client("ann")
    for path in ("/api/decision", "/api/undo"):
        assert client.post(path, content=body).status_code == 422


def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    answer = vote(server.client("ann"), "00000001", reason="x" * LARGEST_BODY)
    assert (answer.status_code, "shorten" in answer.json()["error"]) == (413, True)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "null", ""])
def test_another_sites_requests_are_refused(server: Server, origin: str) -> None:
    client = server.client("ann")
    client.headers["origin"] = origin
    assert vote(client, "00000001").status_code == 403
    del client.headers["origin"]
    assert vote(client, "00000001").status_code == 403
    assert not server.out.read_text()


def test_a_full_disk_is_told_and_nothing_is_half_written(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    client = server.client("ann")
    vote(client, "00000001")
    before = server.out.read_bytes()

    def full(decisions: list[Decision]) -> list[bool]:
        raise PostTrainError(f"votes.jsonl: cannot be written ({os.strerror(errno.ENOSPC)}); make room")

    with monkeypatch.context() as patch:
        patch.setattr(server.log, "append_all", full)
        answer = vote(client, "00000002")
    assert (answer.status_code, "No space left" in answer.json()["error"]) == (507, True)
    assert server.out.read_bytes() == before
    assert vote(client, "00000002").status_code == 200  # there is room again


def test_a_write_that_fails_for_whatever_reason_is_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    item = server.client("ann").get("/api/item").json()["item"]
    client = TestClient(server.app, base_url=BASE, headers={"origin": BASE}, raise_server_exceptions=False)
    client.get(server.tokens.link("", "ann"))

    def failing(decisions: list[Decision]) -> list[bool]:
        raise TypeError("of no kind that is foreseen")

    body = {"id": "vote-00000001", "item": item["id"], "outcome": "verdict", "ranks": [0, 1, 2]}
    with monkeypatch.context() as patch:
        patch.setattr(server.log, "append_all", failing)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(client.post, "/api/decision", json=body).result(timeout=20).status_code == 500
    assert client.post("/api/decision", json=body).status_code == 200


def test_dates_and_bytes_of_a_parquet_file_are_kept_as_texts(tmp_path: Path) -> None:
    row = {"prompt": ["Q"], "chosen": ["A"], "rejected": ["B"], "asked": [date(2026, 1, 5)], "raw": [b"x"]}
    pyarrow.parquet.write_table(pyarrow.table(row), tmp_path / "pairs.parquet")
    server = Server(tmp_path / "votes.jsonl", read_tasks(str(tmp_path / "pairs.parquet"), "rank"), Question("rank"))
    assert vote(server.client("ann"), "00000001", ranks=[0, 1]).status_code == 200
    assert server.kept()[0].columns["asked"] == "2026-01-05"
    assert server.kept()[0].columns["raw"] == "b'x'"


def in_mode(tmp_path: Path, mode: Mode, count: int, **asked: Any) -> tuple[Server, TestClient, dict[str, Any]]:
    server = Server(tmp_path / "votes.jsonl", [task(1, count)], Question(mode, **asked))
    client = server.client("ann")
    item = client.get("/api/item").json()["item"]
    return server, client, {"item": item["id"], "order": item["order"], "outcome": "verdict"}


@pytest.mark.parametrize(
    ("said", "ranks", "rejected"),
    [
        ({"ranks": [0, 1]}, [0, 1], None),
        ({"ranks": [1, 0], "rejected": [False, False]}, [1, 0], None),
        ({"ranks": [0, 0]}, [0, 0], None),
        ({"ranks": [0, 0], "rejected": [True, True]}, [0, 0], [True, True]),
    ],
)
def test_pairs(tmp_path: Path, said: dict[str, Any], ranks: list[int], rejected: list[bool] | None) -> None:
    server, client, body = in_mode(tmp_path, "pair", 2)
    assert client.post("/api/decision", json={**body, "id": "vote-0001", "ranks": [None, 0]}).status_code == 422
    assert client.post("/api/decision", json={**body, "id": "vote-0001", **said}).status_code == 200
    (kept,) = server.kept()
    assert (kept.ranks, kept.rejected) == (ranks, rejected)


def test_ratings_are_ranks_where_they_are_complete(tmp_path: Path) -> None:
    server, client, body = in_mode(tmp_path, "rate", 3, criteria=["helpful", "honest"])
    good = {"helpful": [4, 5, 1], "honest": [4, 3, 1]}
    for bad in (
        {"helpful": [4, 5, 1]},
        {**good, "honest": [4, 6, 1]},
        {**good, "honest": [4, 3]},
        {**good, "honest": 3},
    ):
        assert client.post("/api/decision", json={**body, "id": "vote-0001", "criteria": bad}).status_code == 422
    none = {"helpful": [None] * 3, "honest": [None] * 3}
    assert client.post("/api/decision", json={**body, "id": "vote-0001", "criteria": none}).status_code == 422
    assert client.post("/api/decision", json={**body, "id": "vote-0001", "criteria": good}).status_code == 200
    (kept,) = server.kept()
    assert (kept.criteria, kept.ranks) == (good, [0, 0, 1])


def test_partial_ratings_have_no_ranks(tmp_path: Path) -> None:
    server, client, body = in_mode(tmp_path, "rate", 2, criteria=["helpful"])
    answer = client.post("/api/decision", json={**body, "id": "vote-0001", "criteria": {"helpful": [4, None]}})
    assert answer.status_code == 200
    assert server.kept()[0].ranks is None


@pytest.mark.parametrize("turns", [[], [""], ["a", "b"], ["a", " ", "c"], "a", [1]])
def test_what_is_not_written_is_refused(tmp_path: Path, turns: object) -> None:
    _, client, body = in_mode(tmp_path, "write", 0)
    assert client.post("/api/decision", json={**body, "id": "vote-0001", "turns": turns}).status_code == 422


def test_a_written_conversation(tmp_path: Path) -> None:
    server, client, body = in_mode(tmp_path, "write", 1)
    said = {**body, "id": "vote-0001", "turns": ["    One.\n", "And two?", "Two."]}
    assert client.post("/api/decision", json=said).status_code == 200
    (kept,) = server.kept()
    assert kept.messages == [
        {"role": "user", "content": "What is 1?"},
        {"role": "assistant", "content": "    One."},
        {"role": "user", "content": "And two?"},
        {"role": "assistant", "content": "Two."},
    ]


def test_skipping_needs_nothing(tmp_path: Path) -> None:
    server, client, body = in_mode(tmp_path, "write", 0)
    assert client.post("/api/decision", json={**body, "id": "vote-0001", "outcome": "skipped"}).status_code == 200
    (kept,) = server.kept()
    assert (kept.outcome, kept.messages) == ("skipped", None)


def test_statistics_are_counted_again_only_if_something_changed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    monkeypatch.setattr("lit_posttrain.feedback.annotate.routes._PAUSE", 0)

    def count(figures: Figures) -> dict[str, Any]:
        counts.append(len(figures.decisions))
        return {"count": counts[-1]}

    monkeypatch.setattr(Figures, "all", count)
    organiser = server.client(ORGANISER)
    assert [organiser.get("/api/stats").json()["count"] for _ in range(3)] == [0, 0, 0]
    vote(server.client("ann"), "00000001")
    assert [organiser.get("/api/stats").json()["count"] for _ in range(3)] == [1, 1, 1]
    assert counts == [0, 1]
    monkeypatch.setattr("lit_posttrain.feedback.annotate.routes._PAUSE", 1e12)
    vote(server.client("ann"), "00000002")
    assert organiser.get("/api/stats").json()["count"] == 1  # not yet


def test_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_posttrain.feedback.annotate.routes._PAUSE", 0)
    tasks = [task(n, 2, [0, 1] if n == 0 else None) for n in range(3)]
    server = Server(tmp_path / "votes.jsonl", tasks, Question("pair"))
    organiser = server.client(ORGANISER)
    empty = organiser.get("/api/stats").json()
    assert (empty["items"], empty["gold"], empty["decisions"], empty["missing"]) == (2, 1, 0, 4)
    ann, ben = server.client("ann"), server.client("ben")
    for n, one in enumerate(tasks):
        for who, name, ranks in ((ann, "ann", [0, 1]), (ben, "ben", [1, 0] if n < 2 else [0, 1])):
            assert vote(who, f"{name}-{n:04}", item=one.id, ranks=ranks, order=[0, 1]).status_code == 200
    said = json.loads(organiser.get("/api/stats").text)
    first, second = said["annotators"]
    assert (said["decisions"], said["missing"]) == (6, 0)
    assert (first["name"], first["gold_right"], first["first_position"]["value"]) == ("ann", 1.0, 1.0)
    assert (second["name"], second["gold_right"], second["median_s"]) == ("ben", 0.0, 3.2)
    (both,) = said["between"]
    assert (both["one"], both["other"], both["agreement"]["n"]) == ("ann", "ben", 3)
    assert both["agreement"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert said["people"]["alpha"]["n"] == 3
