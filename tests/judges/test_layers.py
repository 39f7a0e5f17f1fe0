"""The layers between a judge and its model, each around a scripted backend: retries, limits, budget, cache."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Call, CallFailed, Reply, Transient
from lit_posttrain.judges.budget import Budgeted, BudgetSpent
from lit_posttrain.judges.cache import Cached, key_of
from lit_posttrain.judges.limits import Limited
from lit_posttrain.judges.retrying import Retrying
from lit_posttrain.judges.spec import JudgeBudget, JudgeLimits
from lit_posttrain.judges.usage import Usage


def call(number: int = 0, max_tokens: int = 10) -> Call:
    return Call([{"role": "user", "content": f"{number:040}"}], max_tokens)  # of up to 130 tokens, with max_tokens 10


class Clock:
    """A time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, list[float]()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


class Scripted:
    """Answers with what a function of the call's number says; raises it if it is an error."""

    def __init__(self, said: Callable[[int], Reply | Exception], clock: Callable[[], float] = lambda: 0.0) -> None:
        self.said, self.clock = said, clock
        self.times, self.at_once, self.most_at_once = list[float](), 0, 0

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": "scripted"}

    async def ask(self, call: Call) -> Reply:
        self.times.append(self.clock())
        number = len(self.times) - 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        said = self.said(number)
        if isinstance(said, Exception):
            raise said
        return said

    async def close(self) -> None:
        pass


GOOD = Reply("yes", tokens_in=20, tokens_out=5)


def retrying(said: Callable[[int], Reply | Exception], retries: int = 3) -> tuple[Retrying, Scripted, Clock, Usage]:
    clock, usage = Clock(), Usage()
    inner = Scripted(said, clock)
    return Retrying(inner, retries, usage, clock=clock, sleep=clock.sleep), inner, clock, usage


def test_a_call_that_fails_in_passing_is_repeated_after_growing_pauses() -> None:
    layer, inner, clock, usage = retrying(lambda number: Transient("HTTP 500") if number < 3 else GOOD)
    assert asyncio.run(layer.ask(call())) == GOOD
    assert [len(inner.times), usage.repeated, usage.failed] == [4, 3, 0]
    for pause, longest in zip(clock.slept, (1.0, 2.0, 4.0), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_call_is_given_up_after_its_retries_and_one_that_cannot_succeed_at_once() -> None:
    layer, inner, _, usage = retrying(lambda number: GOOD if number == 0 else Transient("HTTP 500"))

    async def two() -> None:
        await layer.ask(call())
        with pytest.raises(CallFailed, match="HTTP 500, at the last of 4 attempts"):
            await layer.ask(call())

    asyncio.run(two())
    assert [len(inner.times), usage.failed] == [5, 1]
    layer, inner, _, _ = retrying(lambda number: CallFailed("too long"))
    with pytest.raises(CallFailed, match="too long"):
        asyncio.run(layer.ask(call()))
    assert len(inner.times) == 1


def test_what_the_server_asks_to_wait_holds_for_all_calls() -> None:
    layer, inner, _, _ = retrying(lambda number: Transient("HTTP 429", retry_after_s=20.0) if number == 0 else GOOD)

    async def two() -> None:
        first = asyncio.create_task(layer.ask(call(1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.gather(first, layer.ask(call(2)))

    asyncio.run(two())
    assert inner.times[0] == 1000
    assert min(inner.times[1:]) >= 1020


def test_nobody_waits_an_hour_because_a_server_asks_for_it() -> None:
    layer, inner, clock, _ = retrying(lambda number: Transient("HTTP 429", retry_after_s=3600.0))
    with pytest.raises(CallFailed, match="HTTP 429"):
        asyncio.run(layer.ask(call()))
    assert [len(inner.times), clock.slept] == [1, []]


def test_a_server_that_was_never_reached_or_is_down_stops_the_run() -> None:
    layer, inner, _, _ = retrying(lambda number: Transient("no answer", reached=False), retries=9)
    with pytest.raises(PostTrainError, match="cannot be reached"):
        asyncio.run(layer.ask(call()))
    assert len(inner.times) == 3
    layer, inner, _, _ = retrying(lambda number: Transient("HTTP 503"), retries=0)

    async def many() -> None:
        for _ in range(19):
            with pytest.raises(CallFailed):
                await layer.ask(call())
        with pytest.raises(PostTrainError, match="20 calls of the judge in a row"):
            await layer.ask(call())

    asyncio.run(many())
    assert len(inner.times) == 20


def limited(limits: JudgeLimits, count: int) -> Scripted:
    clock = Clock()
    inner = Scripted(lambda number: GOOD, clock)
    layer = Limited(inner, limits, clock, clock.sleep)

    async def all_calls() -> None:
        await asyncio.gather(*(layer.ask(call(number)) for number in range(count)))

    asyncio.run(all_calls())
    return inner


def most_in_a_minute(times: list[float]) -> int:
    return max(sum(begin <= time < begin + 60 for time in times) for begin in times)


def test_no_more_calls_at_once_than_the_limit() -> None:
    assert limited(JudgeLimits(concurrency=3), 20).most_at_once == 3


def test_no_sixty_seconds_have_more_requests_or_tokens_than_the_limit() -> None:
    inner = limited(JudgeLimits(concurrency=4, requests_per_minute=7), 30)
    assert most_in_a_minute(inner.times) == 7
    assert inner.times[-1] - inner.times[0] == pytest.approx(240)
    # a call may cost 130 tokens until it is answered, and costs 25
    inner = limited(JudgeLimits(concurrency=1, tokens_per_minute=184), 10)
    assert most_in_a_minute(inner.times) == 3
    assert inner.times[-1] - inner.times[0] == pytest.approx(180)


def test_a_call_that_was_long_on_its_way_counts_from_its_arrival() -> None:
    clock = Clock()

    class Late(Scripted):
        """A server that the first call reaches after three seconds, and the others at once."""

        async def ask(self, call: Call) -> Reply:
            if not self.times:
                await clock.sleep(3.0)
            return await super().ask(call)

    inner = Late(lambda number: GOOD, clock)
    layer = Limited(inner, JudgeLimits(concurrency=1, requests_per_minute=1), clock, clock.sleep)

    async def three() -> None:
        for number in range(3):
            await layer.ask(call(number))

    asyncio.run(three())
    assert inner.times == pytest.approx([1003, 1063, 1123])


def test_a_call_of_more_tokens_than_a_minute_has_fails_instead_of_waiting_for_ever() -> None:
    with pytest.raises(CallFailed, match=r"limits\.tokens_per_minute is 40"):
        limited(JudgeLimits(tokens_per_minute=40), 1)


def budgeted(budget: JudgeBudget, count: int, said: Callable[[int], Reply | Exception]) -> tuple[list[object], Usage]:
    usage = Usage()
    layer = Budgeted(Scripted(said), budget, usage)

    async def all_calls() -> list[object]:
        return await asyncio.gather(*(layer.ask(call(number)) for number in range(count)), return_exceptions=True)

    return asyncio.run(all_calls()), usage


@pytest.mark.parametrize(
    ("budget", "answered"),
    [
        (JudgeBudget(max_calls=4), 4),
        # 20 + 5 tokens a call, of which it is only known before that they are at most 130: a sixth call might exceed it
        (JudgeBudget(max_tokens=244), 5),
        (JudgeBudget(max_cost=204.0, price_in=1e6, price_out=2e6), 3),
        (JudgeBudget(), 10),
    ],
)
def test_calls_stop_before_the_one_that_could_exceed_the_budget(budget: JudgeBudget, answered: int) -> None:
    said, usage = budgeted(budget, 10, lambda number: GOOD)
    assert sum(one == GOOD for one in said) == answered == usage.calls
    stopped = [one for one in said if isinstance(one, BudgetSpent)]
    assert len(stopped) == 10 - answered
    assert usage.tokens == 25 * answered <= (budget.max_tokens or 250)
    if budget.max_cost is not None:
        assert usage.cost == pytest.approx(30.0 * answered)


def test_failed_calls_count_and_cost_what_the_server_may_have_worked() -> None:
    failures: list[Reply | Exception] = [Transient("HTTP 500"), Transient("cut", charged=True), Reply("untold")]
    failures.append(CallFailed("withheld", charged=True))
    _, usage = budgeted(JudgeBudget(), 4, lambda number: failures[number])
    assert [usage.calls, usage.tokens_in, usage.tokens_out] == [4, 3 * 120, 3 * 10]


def test_a_question_is_asked_once_also_at_the_same_time_and_by_another_process(tmp_path: Path) -> None:
    inner, usage = Scripted(lambda number: Reply(f"reply {number}", probabilities={"A": 1.0})), Usage()

    async def asked() -> list[Reply]:
        layer = Cached(inner, tmp_path, usage)
        replies = await asyncio.gather(*(layer.ask(call(number % 3)) for number in range(12)))
        await layer.close()
        return replies

    first = asyncio.run(asked())
    assert [len(inner.times), usage.cached] == [3, 9]
    assert [reply.text for reply in asyncio.run(asked())] == [reply.text for reply in first]
    assert [len(inner.times), usage.cached] == [3, 21]
    assert not any(str(number).zfill(40).encode() in (tmp_path / "replies.sqlite").read_bytes() for number in range(3))


def test_a_failure_is_not_kept_and_who_waited_for_it_asks_again(tmp_path: Path) -> None:
    inner = Scripted(lambda number: CallFailed("no") if number == 0 else GOOD)

    async def asked() -> list[object]:
        layer = Cached(inner, tmp_path, Usage())
        found = await asyncio.gather(*(layer.ask(call()) for _ in range(4)), return_exceptions=True)
        await layer.close()
        return list(found)

    assert [isinstance(one, Reply) for one in asyncio.run(asked())] == [False, True, True, True]
    assert len(inner.times) == 2


def test_everything_that_a_reply_depends_on_is_in_its_key() -> None:
    same = Call([{"role": "user", "content": "Q"}], 5)
    others = [
        Call([{"role": "system", "content": "Q"}], 5),
        Call(same.messages, 6),
        Call(same.messages, 5, temperature=1.0),
        Call(same.messages, 5, choices=("A", "B")),
        Call(same.messages, 5, schema={}),
        Call(same.messages, 5, seed=1),
    ]
    keys = {key_of(one, {"model": "m"}) for one in (same, *others)} | {key_of(same, {"model": "n"})}
    assert len(keys) == len(others) + 2
    assert key_of(same, {"model": "m"}) == key_of(Call([{"content": "Q", "role": "user"}], 5), {"model": "m"})


def test_a_cache_that_cannot_be_used_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "replies.sqlite").write_text("no data base, but long enough to look at\n" * 40)
    with pytest.raises(PostTrainError, match="cache_dir") as problem:
        Cached(Scripted(lambda number: GOOD), tmp_path, Usage())
    assert "\n" not in str(problem.value)


def test_a_full_disk_is_told_in_a_line(tmp_path: Path) -> None:
    async def asked() -> None:
        layer = Cached(Scripted(lambda number: Reply("x" * 100_000)), tmp_path, Usage())
        pages = layer._base.execute("PRAGMA page_count").fetchone()[0]
        layer._base.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(PostTrainError, match=r"full.*make room"):
            await layer.ask(call())
        await layer.close()

    asyncio.run(asked())
    with sqlite3.connect(tmp_path / "replies.sqlite") as base:
        assert base.execute("SELECT count(*) FROM replies").fetchone() == (0,)
