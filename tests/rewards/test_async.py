"""Rewards that are coroutines: one event loop for all of their calls, time limits, and what blocks the loop."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest
from rewards.test_rules import batch
from rewards.test_total import SAID, failures, summed

from lit_posttrain.errors import PostTrainError


async def wait(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return 1.0


def test_they_are_awaited() -> None:
    async def slow(completions: list[str]) -> list[float]:
        return [await wait(0.01) for _ in completions]

    assert summed(slow)(batch(SAID)).total.tolist() == [1.0] * 3


def test_what_one_keeps_can_be_used_in_every_call() -> None:
    """As a client of a judge's server: such things belong to the loop that they were first used in."""
    two_at_once = asyncio.Semaphore(2)
    loops: set[asyncio.AbstractEventLoop] = set()

    async def judge(said: str) -> float:
        async with two_at_once:
            loops.add(asyncio.get_running_loop())
            return await wait(0.01)

    async def judged(completions: list[str]) -> list[float]:
        return list(await asyncio.gather(*map(judge, completions)))

    rewards = summed(judged)
    for _ in range(3):
        assert failures(rewards(batch([*SAID, "four"]))) == {"judged": 0}
    assert len(loops) == 1


def test_one_that_hangs_ends() -> None:
    async def slow(completions: list[str]) -> list[float]:
        return [await wait(60) for _ in completions]

    started = time.monotonic()
    with pytest.raises(PostTrainError, match="again and again"):
        summed(slow, timeout=0.2)(batch(SAID))
    assert time.monotonic() - started < 10


def test_one_that_blocks_ends() -> None:
    async def blocks(completions: list[str]) -> list[float]:
        time.sleep(3)
        return [1.0] * len(completions)

    begun = time.monotonic()
    assert failures(summed(blocks, timeout=0.2)(batch(["a"]))) == {"blocks": 1}
    assert time.monotonic() - begun < 2.9


def test_one_that_blocks_costs_one_response_its_score() -> None:
    async def sometimes(completions: list[str]) -> list[float]:
        time.sleep(2 if "two" in completions else 0)
        return [1.0] * len(completions)

    rewards = summed(sometimes, timeout=0.5)
    assert rewards(batch(SAID)).total.isnan().tolist() == [False, True, False]
    assert failures(rewards(batch(["one", "three"]))) == {"sometimes": 0}


def test_a_timeout_of_its_own_is_a_failure_like_others(caplog: pytest.LogCaptureFixture) -> None:
    """A server that does not answer is no reason to give up, or to raise the time limit."""

    async def judge(said: str) -> float:
        async with asyncio.timeout(0.01):
            return await wait(60 if said != "one" else 0)

    async def judged(completions: list[str]) -> list[float]:
        return [await judge(said) for said in completions]

    found = summed(judged)(batch(["one", "a", "b", "c", "d"]))
    assert failures(found) == {"judged": 4}
    assert "a batch of 5 failed (TimeoutError), so its responses are judged" in caplog.text
    assert "raise reward_timeout" not in caplog.text


def test_an_exit_is_a_failure_like_others() -> None:
    async def leaves(completions: list[str]) -> list[float]:
        return [sys.exit(3) if said == "two" else 1.0 for said in completions]

    rewards = summed(leaves)
    for _ in range(2):
        found: Any = rewards(batch(SAID))
        assert found.total.isnan().tolist() == [False, True, False]
