"""One call to a server that may answer anything, or nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from helpers.model_server import FAULTS, Answer, Asked, Request, completion, error, serving

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Call, CallFailed, Reply, Transient
from lit_posttrain.judges.endpoint import Endpoint
from lit_posttrain.judges.spec import JudgeSpec

ASKED = [{"role": "user", "content": "Which one?"}]
WORDS, LETTERS = Call(ASKED, max_tokens=5), Call(ASKED, choices=("A", "B"))
KEY = "sk-0123456789abcdefghij"


def ask(answer: Callable[[Request], Answer], *calls: Call, **spec: Any) -> tuple[list[Reply], list[Asked]]:
    async def all_calls(url: str) -> list[Reply]:
        endpoint = Endpoint(JudgeSpec("judge", endpoint=url, **spec))
        try:
            return [await endpoint.ask(call) for call in calls]
        finally:
            await endpoint.close()

    with serving(answer) as server:
        return asyncio.run(all_calls(server.url)), server.asked


def test_a_reply_and_what_it_cost() -> None:
    (reply,), (asked,) = ask(lambda request: (200, completion("the second one", finish_reason="length")), WORDS)
    assert (reply.text, reply.finish_reason, reply.tokens_in, reply.tokens_out) == ("the second one", "length", 20, 3)
    assert asked.request == {"model": "judge", "messages": ASKED, "max_tokens": 5, "temperature": 0.0, "seed": 0}


def test_half_of_a_surrogate_pair_is_asked_as_a_replacement_character() -> None:
    _, (asked,) = ask(lambda request: (200, completion("yes")), Call([{"role": "user", "content": "a\ud83d?"}]))
    assert asked.request["messages"] == [{"role": "user", "content": "a\ufffd?"}]


def test_probabilities_of_choices_are_those_of_the_first_token() -> None:
    likely = {"A": 0.3, " A": 0.1, "B": 0.2, "The": 0.3, " ": 0.05, "ABC": 0.01}
    (reply,), (asked,) = ask(lambda request: (200, completion("A", likely)), LETTERS)
    assert reply.probabilities == pytest.approx({"A": 0.4 / 0.6, "B": 0.2 / 0.6})
    assert reply.choice_mass == pytest.approx(0.6)
    assert (asked.request["max_tokens"], asked.request["top_logprobs"]) == (1, 20)


def test_a_token_that_begins_one_choice_counts_for_it_and_one_that_begins_several_for_none() -> None:
    call = Call(ASKED, choices=("first", "second", "the same"))
    (reply,), _ = ask(lambda request: (200, completion("f", {"fir": 0.5, "sec": 0.25, "x": 0.1})), call)
    assert reply.probabilities == pytest.approx({"first": 2 / 3, "second": 1 / 3, "the same": 0.0})
    (reply,), _ = ask(lambda request: (200, completion("t", {"th": 0.5})), Call(ASKED, choices=("this", "that")))
    assert (reply.probabilities, reply.choice_mass) == ({}, 0.0)
    with pytest.raises(ValueError, match="begin alike"):
        ask(lambda request: (200, completion("1")), Call(ASKED, choices=("1", "10")))


@pytest.mark.parametrize("answered", [(200, completion("A")), error(400, "logprobs are not supported by this model")])
def test_a_server_without_probabilities_is_refused_with_the_kinds_that_need_none(answered: Answer) -> None:
    with pytest.raises(PostTrainError, match=r"--judge\.kind verdict, listwise or rubric"):
        ask(lambda request: answered, LETTERS)


def test_what_a_server_does_not_know_is_left_out_once(capsys: pytest.CaptureFixture[str]) -> None:
    def modern(request: Request) -> Answer:
        if "response_format" in request:
            return error(400, "structured output is not available")
        if "max_tokens" in request:
            return error(400, "Unsupported parameter: 'max_tokens'", param="max_tokens")
        return 200, completion("yes")

    call = Call(ASKED, max_tokens=7, schema={"type": "object"})
    replies, asked = ask(modern, call, call)
    assert [reply.text for reply in replies] == ["yes", "yes"]
    assert [len(asked), asked[-1].request["max_completion_tokens"]] == [4, 7]
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" refuses ")[1].split(" and ")[0] for line in told] == ["max_tokens", "response_format"]


def test_a_refusal_that_has_other_reasons_leaves_the_schema_in() -> None:
    def picky(request: Request) -> Answer:
        return error(400, "no") if request["messages"] == [] else (200, completion("yes"))

    call = Call(ASKED, schema={"type": "object"})

    async def three(url: str) -> None:
        endpoint = Endpoint(JudgeSpec("judge", endpoint=url))
        await endpoint.ask(call)
        with pytest.raises(CallFailed, match="HTTP 400: no"):
            await endpoint.ask(Call([], schema={"type": "object"}))
        await endpoint.ask(call)
        await endpoint.close()

    with serving(picky) as server:
        asyncio.run(three(server.url))
    assert "response_format" in server.asked[-1].request


@pytest.mark.parametrize(
    ("answered", "told"),
    [
        (error(401, f"Incorrect API key provided: {KEY}"), r"refuses the key in MY_KEY \(HTTP 401: .*\*\*\*"),
        (error(403, "not in your country"), r"refuses the key in MY_KEY \(HTTP 403"),
        (error(404, "The model `judge` does not exist."), "has no model judge"),
        (error(429, "You exceeded your quota", code="insufficient_quota"), "nothing left to spend"),
    ],
)
def test_what_would_fail_every_time_stops_the_run_in_a_line(
    answered: Answer, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(PostTrainError, match=told) as problem:
        ask(lambda request: answered, WORDS, api_key_env="MY_KEY")
    assert KEY not in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_server_that_refuses_the_first_questions_stops_the_run_and_one_that_refuses_a_single_one_does_not() -> None:
    async def outcomes(url: str, count: int) -> list[str]:
        endpoint, found = Endpoint(JudgeSpec("judge", endpoint=url)), []
        for number in range(count):
            try:
                await endpoint.ask(Call([{"role": "user", "content": f"{number}"}]))
                found.append("reply")
            except CallFailed:
                found.append("failed")
            except PostTrainError as problem:
                found.append(str(problem).partition(" refuses ")[2])
        await endpoint.close()
        return found

    told = "the first 3 questions (HTTP 400: what is this?)"
    with serving(lambda request: error(400, "what is this?")) as server:
        assert asyncio.run(outcomes(server.url, 3)) == ["failed", "failed", told]

    def picky(request: Request) -> Answer:
        return error(400, "no") if request["messages"][0]["content"] == "0" else (200, completion("yes"))

    with serving(picky) as server:
        assert asyncio.run(outcomes(server.url, 3)) == ["failed", "reply", "reply"]


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation", "moderation_blocked"])
@pytest.mark.parametrize("status", [400, 403])
def test_a_question_that_a_content_filter_refuses_fails_alone_also_as_the_first(code: str, status: int) -> None:
    with pytest.raises(CallFailed, match="content filter refuses the question: flagged"):
        ask(lambda request: error(status, "flagged", code=code), Call(ASKED, schema={"type": "object"}))


def test_a_refusal_by_403_stops_the_run_only_before_the_first_answer() -> None:
    def answer(request: Request) -> Answer:
        return (200, completion("yes")) if request["max_tokens"] == 5 else error(403, "not this one")

    with pytest.raises(CallFailed, match="HTTP 403: not this one"):
        ask(answer, WORDS, Call(ASKED, max_tokens=6))


def test_a_question_that_is_too_long_fails_alone() -> None:
    told = "This model's maximum context length is 64 tokens. However, you requested 90; reduce max_tokens."
    with pytest.raises(CallFailed, match="longer than the judge's context") as problem:
        ask(lambda request: error(400, told), WORDS)
    assert not isinstance(problem.value, Transient)


def test_the_key_goes_only_to_whom_it_was_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    _, (asked,) = ask(lambda request: (200, completion("yes")), WORDS)
    assert KEY not in str(asked.headers)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}")
    with pytest.raises(PostTrainError, match="OPENAI_CUSTOM_HEADERS, which may hold a key; unset it"):
        ask(lambda request: (200, completion("yes")), WORDS)
    monkeypatch.delenv("OPENAI_CUSTOM_HEADERS")
    _, (asked,) = ask(lambda request: (200, completion("yes")), WORDS, api_key_env="OPENAI_API_KEY")
    assert asked.authorization == f"Bearer {KEY}"
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(PostTrainError, match="environment variable OPENAI_API_KEY"):
        Endpoint(JudgeSpec("judge", endpoint="https://api.openai.com/v1"))
    with pytest.raises(PostTrainError, match=r"asks for a key.*--judge\.api_key_env"):
        ask(lambda request: error(401, "no key"), WORDS)


def test_neither_identity_nor_repr_has_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    endpoint = Endpoint(JudgeSpec("judge", endpoint="http://127.0.0.1:9/v1/", api_key_env="MY_KEY"))
    assert endpoint.identity == {"model": "judge", "endpoint": "http://127.0.0.1:9/v1"}
    assert KEY not in repr(endpoint)


@pytest.mark.parametrize("before", ["Bearer ", " " * 45])
def test_a_server_that_echoes_the_key_puts_it_into_no_error(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(Transient, match="no chat completion") as problem:
        ask(lambda request: (200, {"was": f"{before}{KEY}"}), WORDS, api_key_env="MY_KEY")
    assert "sk-" not in str(problem.value)


@pytest.mark.parametrize("key", [f"{KEY}\nX: y", f"{KEY} {KEY}", f"{KEY}\u00e9"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(PostTrainError, match="MY_KEY has a space, a line break") as problem:
        Endpoint(JudgeSpec("judge", endpoint="http://127.0.0.1:9/v1", api_key_env="MY_KEY"))
    assert "sk-" not in str(problem.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_a_call_that_may_be_repeated_within_its_deadline(fault: str) -> None:
    async def once(url: str) -> tuple[Transient, float]:
        endpoint = Endpoint(JudgeSpec("judge", endpoint=url, timeout_s=1.0))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises(Transient) as problem:
            await endpoint.ask(WORDS)
        took = loop.time() - begun
        await endpoint.close()
        return problem.value, took

    with serving(lambda request: (200, completion("yes")), lambda number, request: fault) as server:
        failure, took = asyncio.run(once(server.url))
    assert took < 3
    assert failure.reached
    assert failure.charged == (fault not in ("500", "429", "429 date"))
    wanted = {"429": 0.2, "429 date": 1.0}.get(fault)
    assert failure.retry_after_s == (None if wanted is None else pytest.approx(wanted, abs=1.0))
    assert "\n" not in str(failure)


def test_an_endpoint_that_refuses_connections_is_not_reached() -> None:
    async def once() -> None:
        with pytest.raises(Transient, match="no answer") as problem:
            await Endpoint(JudgeSpec("judge", endpoint="http://127.0.0.1:9/v1")).ask(WORDS)
        assert not problem.value.reached
        assert not problem.value.charged

    asyncio.run(once())


def test_a_reply_without_end_is_not_read_until_the_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_posttrain.judges.endpoint._MOST_BYTES", 1000)
    with pytest.raises(Transient, match="was not read"):
        ask(lambda request: (200, b"x" * 5000), WORDS)


def test_a_missing_package_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(PostTrainError, match=r'pip install "lit-posttrain\[feedback\]"'):
        Endpoint(JudgeSpec("judge", endpoint="http://127.0.0.1:9/v1"))
