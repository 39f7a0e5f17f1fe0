"""The records of the project's judges show their habits: both orders, of pairs and of more responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from helpers.judges import ScriptedBackend, choice, item, parts

from lit_posttrain.feedback.agreement.bias import Bias, bias_of
from lit_posttrain.feedback.agreement.intervals import Bootstrap
from lit_posttrain.feedback.agreement.votes import votes_of
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.building import judge_of
from lit_posttrain.judges.judge import decision
from lit_posttrain.judges.spec import JudgeSpec

ITEMS = [
    item(*("a" * (2 + 3 * k + n % 3) for k in range(count)), prompt=[{"role": "user", "content": f"{count} of {n}?"}])
    for n in range(10)
    for count in (2, 3)
]


def bias(script: Callable[[Call], Reply], **spec: Any) -> Bias:
    """Of a judge that answers so."""

    async def judged() -> list[Any]:
        judge = judge_of(JudgeSpec("small", **spec), ScriptedBackend(script))
        return [decision(one, judge, await judge.opinion(one)) for one in ITEMS]

    votes = votes_of(asyncio.run(judged()))
    assert len(votes.pairs) == 10 * (1 + 3)
    return bias_of(votes, 0, Bootstrap(votes.prompt))


def test_a_judge_that_always_answers_a_is_positional() -> None:
    found = bias(lambda call: choice(A=0.9, B=0.1), kind="pairwise")
    assert found.swap_consistency.value == 0
    assert found.first_position.value == 1
    assert found.swap_consistency.n == 40
    assert found.longer.value == pytest.approx(0.5)


def longest(call: Call) -> Reply:
    shown = parts(call)
    long = float(len(shown["response A"]) > len(shown["response B"]))
    return choice(A=long, B=1 - long)


def test_a_judge_that_answers_the_longer_one_is_length_driven() -> None:
    found = bias(longest, kind="pairwise")
    assert found.swap_consistency.value == 1
    assert found.first_position.value == 0.5
    assert found.longer.value == 1


def test_a_listwise_judge_that_keeps_the_order_is_positional() -> None:
    def keeps(call: Call) -> Reply:
        shown = [name.removeprefix("response ") for name in parts(call) if name.startswith("response ")]
        return Reply("Ranking: " + " > ".join(shown))

    found = bias(keeps, kind="listwise")
    assert found.swap_consistency.value == 0
    assert found.first_position.value == 1
