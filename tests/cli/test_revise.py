"""`lit-posttrain revise`: its files are data, what it has kept is not asked for again, and mistakes are one line."""

from __future__ import annotations

import json
import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.cli import one_line
from helpers.judges import ScriptedBackend
from helpers.runs import write

from lit_posttrain.cli.main import main
from lit_posttrain.judges import transport
from lit_posttrain.judges.backend import Call, CallFailed, Reply
from lit_posttrain.judges.constitution import read_constitution

CRITIQUES = {one.critique for one in read_constitution().principles}
PROMPTS = 40


def plain(call: Call) -> Reply:
    """A response to `what is N`, a critique, or a revision that says which N it is about."""
    last = str(call.messages[-1]["content"])
    if last in CRITIQUES:
        return Reply("it is short")
    if len(call.messages) > 1:
        return Reply(f"better: {call.messages[0]['content']}")
    return Reply(f"poor: {last}")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """What stands for every endpoint."""
    backend = ScriptedBackend(plain)
    monkeypatch.setattr(transport, "Endpoint", lambda spec: backend)
    return backend


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    asked = write(tmp_path / "asked.jsonl", [{"id": i, "prompt": f"what is {i}"} for i in range(PROMPTS)])
    where = ["--model", "any", "--endpoint", "http://127.0.0.1:1/v1", "--cache_dir", "replies"]
    return ["revise", *where, "--prompts", asked, "--out", "revised.jsonl"]


def rows(file: str) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_conversations_and_pairs_are_data(
    command: list[str], model: ScriptedBackend, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--pairs", "pairs.jsonl", "--rounds", "2"]) == 0
    told = f"{PROMPTS} further rounds are passed over (the revision equals the response: {PROMPTS})"
    usage = f"{5 * PROMPTS} calls, 0 of them repeated, 0 given up, 0 replies from the cache, "
    said = capsys.readouterr().err.strip().splitlines()
    assert [said[0].startswith(usage), said[1:]] == [True, [told]]
    revised, pairs = rows("revised.jsonl"), rows("pairs.jsonl")
    assert [row["id"] for row in revised] == [row["id"] for row in pairs] == list(range(PROMPTS))
    assert revised[3]["messages"][-1] == {"role": "assistant", "content": "better: what is 3"}
    assert (pairs[3]["chosen"], pairs[3]["rejected"]) == ("better: what is 3", "poor: what is 3")
    # a second revision says the same as the first
    assert [one["left_out"] for one in pairs[3]["chain"]["rounds"]] == ["", "the revision equals the response"]
    small = ["--model.policy.path", str(tiny_model), "--data.cache_dir", "data"]
    for config, file in (("sft", "revised.jsonl"), ("dpo", "pairs.jsonl")):
        audit = ["audit", "--config", f"configs/{config}.yaml", *small, "--data.path", file, "--out", f"{config}.json"]
        assert main(audit) == 0
        (found,) = json.loads(Path(f"{config}.json").read_text())["files"]
        assert found["rows"] == PROMPTS, found


def interrupted(model: ScriptedBackend, calls: int) -> None:
    """Ctrl-C after so many calls."""

    replies = count(1)

    def script(call: Call) -> Reply:
        if next(replies) == calls:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(call)

    model.script = script


@pytest.mark.parametrize("calls", [1, 97, 119])
def test_a_command_that_was_stopped_goes_on(
    calls: int, command: list[str], model: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    """Replies are kept too, so that nothing is asked twice; the file is that of a command that was not stopped."""
    interrupted(model, calls)
    assert main(command) == 130
    assert ("revised.jsonl.part" in capsys.readouterr().err) == (calls > 96)  # 32 prompts of 3 calls are kept at once
    assert not Path("revised.jsonl").exists()
    assert main(command) == 0
    asked = [json.dumps([call.messages, call.seed]) for call in model.calls]
    assert len(set(asked)) == 3 * PROMPTS
    assert len(asked) - len(set(asked)) <= 16  # those that were under way
    found = Path("revised.jsonl").read_text()
    assert main([*command[:-1], "whole.jsonl"]) == 0
    assert Path("whole.jsonl").read_text() == found
    assert not Path("revised.jsonl.part").exists()


def test_other_options_do_not_go_on_with_what_is_kept(
    command: list[str], model: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(model, 100)
    assert main(command) == 130
    capsys.readouterr()
    assert main([*command, "--rounds", "2"]) == 2
    assert "revised.jsonl.part holds what another model" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["--pairs", "./revised.jsonl"], "--out is the same file; name another"),
        (["--constitution", "none.yaml"], "none.yaml: the constitution cannot be read"),
        (["--api_key_env", "sk-12"], "is the name of an environment variable"),
        (["--out", "asked.jsonl", "--overwrite", "true"], "a file of the data; choose another"),
    ],
)
def test_mistakes(
    options: list[str], said: str, command: list[str], model: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *options]) == 2
    assert said in one_line(capsys)
    assert model.calls == []


def test_nothing_to_keep_is_an_error_and_says_why(
    command: list[str], model: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    model.script = lambda call: Reply("" if len(call.messages) > 1 else "poor")
    assert main(command) == 2
    assert f"{PROMPTS} of {PROMPTS} prompts are left out (the critique is empty: {PROMPTS})" in one_line(capsys)


def test_the_advice_after_failed_calls_leads_on(
    command: list[str], model: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(call: Call) -> Reply:
        raise CallFailed("HTTP 500")

    model.script = fails
    assert main(command) == 2
    assert "to begin anew, remove revised.jsonl.part if it is calls that failed" in capsys.readouterr().err
    Path("revised.jsonl.part").unlink()
    model.script = plain
    assert main(command) == 0
    assert len(rows("revised.jsonl")) == PROMPTS


def test_a_model_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random one never ends by itself: all is cut off."""
    monkeypatch.chdir(tmp_path)
    roomy = tiny.save_model(tmp_path / "roomy", max_position_embeddings=8192)
    asked = write(tmp_path / "asked.jsonl", [{"prompt": "what"}, {"prompt": "why"}])
    words = ["revise", "--model", str(roomy), "--prompts", asked, "--out", "x.jsonl", "--max_new_tokens", "2"]
    assert main([*words, "--cache_dir", "replies"]) == 2
    assert "2 of 2 prompts are left out (the response was cut off: 2)" in one_line(capsys)
