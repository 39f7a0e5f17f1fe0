"""`lit-posttrain judge` against a scripted server: every item once, whatever the server does and whoever kills it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import one_line
from helpers.model_server import Answer, Asked, ModelServer, Request, completion, error, planned, serving

from lit_posttrain.cli.main import main
from lit_posttrain.data.feedback.log import read_decisions
from lit_posttrain.data.feedback.record import Decision

KEY = "sk-0123456789abcdefghij"


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """60 of them; the first response is the right one."""
    file = tmp_path / "items.jsonl"
    rows = [{"prompt": f"What is {n} + 1?", "responses": [f"It is {n + 1}.", f"It is {n}."]} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def prefers_a(request: Request) -> Answer:
    return 200, completion("A", {"A": 0.7, "B": 0.2})


def words(items: Path, server: ModelServer, *extra: str) -> list[str]:
    own = ["--data", str(items), "--out", str(items.with_name("out.jsonl")), "--judge.model", "judge"]
    own += ["--judge.endpoint", server.url, "--judge.cache_dir", str(items.with_name("cache"))]
    return ["judge", *own, *extra]


def decisions(items: Path) -> list[Decision]:
    found, _ = read_decisions(items.with_name("out.jsonl"))
    assert len({one.item for one in found}) == len(found)
    return found


def asked_again(asked: list[Asked]) -> int:
    """How many questions were asked after they had been answered."""
    answered = Counter(json.dumps(one.request["messages"]) for one in asked if one.answered)
    return sum(count - 1 for count in answered.values())


def test_a_file_is_judged_in_both_orders_and_a_rerun_asks_nothing(
    items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(prefers_a) as server:
        assert main(words(items, server)) == 0
        told = capsys.readouterr().out
        assert "out.jsonl: 60 verdicts, 0 unparsable, 0 failed" in told
        assert "120 calls, 0 of them repeated, 0 given up, 0 replies from the cache, 2520 tokens" in told
        assert main(words(items, server)) == 0
        assert "60 were there already" in capsys.readouterr().out
        items.with_name("out.jsonl").unlink()
        assert main(words(items, server)) == 0
        assert "0 calls, 0 of them repeated, 0 given up, 120 replies from the cache" in capsys.readouterr().out
        assert len(server.asked) == 120
    found = decisions(items)
    assert len(found) == 60
    assert all(one.judge is not None and one.judge["orders"] == pytest.approx([7 / 9, 2 / 9]) for one in found)
    assert {one.probability for one in found} == {0.5}


@pytest.mark.parametrize(
    ("answered", "told"),
    [(error(401, f"Incorrect API key: {KEY}"), "the key in MY_KEY"), (error(404, "no such model"), "no model judge")],
)
def test_a_wrong_key_or_model_is_one_line_after_few_calls(
    items: Path, answered: Answer, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(lambda request: answered) as server:
        assert main(words(items, server, "--judge.api_key_env", "MY_KEY")) == 2
    said = one_line(capsys)
    assert told in said
    assert KEY not in said
    assert len(server.asked) <= 32  # 16 at once, of both orders


def test_the_key_is_in_no_file(
    items: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(prefers_a) as server:
        assert main(words(items, server, "--judge.api_key_env", "MY_KEY")) == 0
    assert server.asked[0].authorization == f"Bearer {KEY}"
    written = [file for file in items.parent.rglob("*") if file.is_file()]
    assert len(written) >= 3
    assert not [file for file in written if KEY.encode() in file.read_bytes()]
    assert KEY not in "".join(capsys.readouterr())


def test_a_missing_key_is_told_before_any_call(items: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(prefers_a) as server:
        assert main(words(items, server, "--judge.api_key_env", "NOT_SET")) == 2
    assert "environment variable NOT_SET" in one_line(capsys)
    assert not server.asked


def test_a_spent_budget_keeps_what_is_judged_and_the_same_command_goes_on(
    items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(prefers_a) as server:
        assert main(words(items, server, "--judge.budget.max_calls", "50")) == 2
        captured = capsys.readouterr()
        assert "budget.max_calls 50" in captured.err
        assert "the same command goes on" in captured.err
        assert [len(server.asked), 20 <= len(decisions(items)) <= 25] == [50, True]
        assert main(words(items, server)) == 0
    assert [len(server.asked), len(decisions(items))] == [120, 60]


def test_limits_hold_and_faults_leave_no_item_out_and_none_twice(
    items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--judge.limits.concurrency", "8", "--judge.timeout_s", "1", "--judge.retries", "8"]
    with serving(prefers_a, planned(seed=1, rate=0.25)) as server:
        assert main(words(items, server, *options)) == 0
    found = decisions(items)
    assert Counter(one.outcome for one in found)["verdict"] >= 59
    assert len(found) == 60
    assert server.most_at_once <= 8 + server.count("hang") + server.count("drip")  # which the server takes for open
    assert asked_again(server.asked) == 0
    told = capsys.readouterr().out
    assert f"{len(server.asked)} calls, {len(server.asked) - 120} of them repeated" in told


def test_a_question_that_never_has_an_answer_is_reported_and_judged_again_on_request(
    items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused: dict[str, Any] = {"What is 7 + 1?": True}

    def answer(request: Request) -> Answer:
        text = request["messages"][-1]["content"]
        return error(500, "out of memory") if refused and "What is 7 + 1?" in text else prefers_a(request)

    with serving(answer) as server:
        assert main(words(items, server, "--judge.retries", "1")) == 0
        assert "59 verdicts, 0 unparsable, 1 failed" in capsys.readouterr().out
        (failed,) = [one for one in decisions(items) if one.outcome == "failed"]
        assert "HTTP 500: out of memory" in failed.error
        assert failed.ranks is None
        refused.clear()
        assert main(words(items, server, "--judge.retries", "1")) == 0
        captured = capsys.readouterr()
        assert "60 were there already" in captured.out
        assert "1 failed items have no score; --retry_failed true" in captured.err
        assert main(words(items, server, "--judge.retries", "1", "--retry_failed", "true")) == 0
        assert "failed items" not in capsys.readouterr().err
    assert Counter(one.outcome for one in decisions(items)) == {"verdict": 60}


def test_a_run_without_any_verdict_is_an_error(items: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda request: error(400, "flagged", code="content_filter")) as server:
        assert main(words(items, server)) == 2
    told = capsys.readouterr()
    assert "60 failed" in told.out
    assert "no item has a verdict" in told.err.splitlines()[-1]
    assert "flagged" in told.err.splitlines()[-1]


def test_a_model_in_this_process_judges_too(items: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--out", str(items.with_name("out.jsonl")), "--judge.cache_dir", str(items.with_name("cache"))]
    command = ["judge", "--data", str(items), *own, "--judge.model", str(tiny_model)]
    assert main([*command, "--judge.budget.max_calls", "20"]) == 2
    assert main(command) == 0
    told = capsys.readouterr().out
    assert " 0 replies from the cache" in told.splitlines()[-1]
    found = decisions(items)
    assert len(found) == 60
    assert all(one.judge is not None and one.judge["kind"] == "pairwise" for one in found)


def test_an_endpoint_that_is_not_there_is_one_line(items: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = ModelServer("http://127.0.0.1:9/v1")
    assert main(words(items, server, "--judge.retries", "1")) == 2
    assert "cannot be reached" in one_line(capsys)


def stopped(items: Path, server: ModelServer, number: signal.Signals, after: int) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, to which a signal is sent after so many answers."""
    command = [sys.executable, "-m", "lit_posttrain", *words(items, server, "--judge.limits.concurrency", "4")]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while sum(one.answered for one in server.asked) < after:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def slowly(answer: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
    def late(request: Request) -> Answer:
        time.sleep(0.02)
        return answer(request)

    return late


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_goes_on_and_asks_again_at_most_what_was_under_way(items: Path, number: signal.Signals) -> None:
    with serving(slowly(prefers_a)) as server:
        ended = stopped(items, server, number, after=40)
        first = len(decisions(items))
        assert 10 <= first < 40
        if number != signal.SIGKILL:
            assert ended.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
            assert "Traceback" not in ended.stderr
            assert f"{first} verdicts" in ended.stdout
            assert "the same command goes on" in ended.stderr
        assert main(words(items, server)) == 0
    assert len(decisions(items)) == 60
    assert asked_again(server.asked) <= 4
