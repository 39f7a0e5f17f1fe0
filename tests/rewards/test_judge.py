"""A judge as a reward: what it is shown, what scores it gives, and what has none."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rewards.test_rules import batch

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.judge import Opinion
from lit_posttrain.judges.spec import JudgeSpec
from lit_posttrain.rewards import JudgeReward, RewardSum
from lit_posttrain.rewards.base import RewardBatch


class Lengths:
    """Scores every response by its length, or as a function says; `seen` are all items."""

    name, identity = "lengths", dict[str, Any]()

    def __init__(self, say: Callable[[Item], Opinion | None] = lambda item: None, pause_s: float = 0.0) -> None:
        self.say, self.pause_s, self.seen = say, pause_s, list[Item]()

    async def opinion(self, item: Item) -> Opinion:
        self.seen.append(item)
        await asyncio.sleep(self.pause_s)
        return self.say(item) or Opinion("verdict", [float(len(text)) for text in item.texts])

    async def close(self) -> None:
        """Nothing is open."""


def judged(judge: Lengths, rewarded: RewardBatch, kind: str = "score", **options: Any) -> Mapping[str, torch.Tensor]:
    """The total of a batch, and where it failed."""
    reward = JudgeReward(JudgeSpec("none", kind=kind), name="judge")  # type: ignore[arg-type]  # as it is parametrised
    reward._judge = judge
    found = RewardSum([reward], **options)(rewarded)
    return {"total": found.total, "failed": found.failed["judge"]}


def of_prompts(*groups: Sequence[str]) -> RewardBatch:
    """Responses to prompts a, b, ..."""
    texts = [text for group in groups for text in group]
    asked = [chr(ord("a") + number) for number, group in enumerate(groups) for _ in group]
    found = batch(texts)
    prompts = [[{"role": "user", "content": prompt}] for prompt in asked]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    return RewardBatch(
        prompts, texts, {"topic": asked}, found.tokens, found.truncated, [f"a.jsonl:{p}" for p in asked], [], messages
    )


def test_pointwise_kinds_are_shown_every_response_alone() -> None:
    judge = Lengths()
    found = judged(judge, of_prompts(["one", "three"], ["to"]))
    assert found["total"].tolist() == [3.0, 5.0, 2.0]
    assert [item.texts for item in judge.seen] == [["one"], ["three"], ["to"]]
    assert [item.columns["topic"] for item in judge.seen] == ["a", "a", "b"]


@pytest.mark.parametrize("kind", ["pairwise", "verdict", "listwise"])
def test_kinds_that_compare_are_shown_the_responses_to_a_prompt(kind: str) -> None:
    judge = Lengths()
    found = judged(judge, of_prompts(["one", "three"], ["to", "four", "x"]), kind)
    assert found["total"].tolist() == [3.0, 5.0, 2.0, 4.0, 1.0]
    assert [(item.prompt[0]["content"], item.texts) for item in judge.seen] == [
        ("a", ["one", "three"]),
        ("b", ["to", "four", "x"]),
    ]


def test_equal_responses_are_shown_once_and_have_one_score() -> None:
    judge = Lengths()
    found = judged(judge, of_prompts(["one", "three", "one"], ["to", "to"], ["alone"]), "listwise")
    assert found["total"].tolist()[:5] == [3.0, 5.0, 3.0, 0.5, 0.5]
    assert found["total"].isnan().tolist() == [False] * 5 + [True]
    assert not found["failed"].any()  # one that is alone is not applicable, which is no failure
    assert [item.texts for item in judge.seen] == [["one", "three"]]


@pytest.mark.parametrize("outcome", ["unparsable", "failed"])
def test_without_a_verdict_there_is_no_score(outcome: Any, caplog: pytest.LogCaptureFixture) -> None:
    def say(item: Item) -> Opinion | None:
        return Opinion(outcome, [None], error="what came") if item.texts == ["two"] else None

    found = judged(Lengths(say), of_prompts(["one", "two", "three"]))
    assert found["failed"].tolist() == [False, True, False]
    assert found["total"].isnan().tolist() == [False, True, False]
    assert f"on 1 of 3 responses, which have no score: a.jsonl:a: NoVerdict: {outcome}: what came" in caplog.text


def test_a_group_without_a_verdict_has_no_score_and_the_others_have() -> None:
    def say(item: Item) -> Opinion | None:
        return Opinion("failed", [None, None], error="HTTP 500") if "one" in item.texts else None

    found = judged(Lengths(say), of_prompts(["one", "three"], ["to", "four"]), "pairwise")
    assert found["failed"].tolist() == [True, True, False, False]


def test_an_item_that_cannot_be_judged_has_no_score() -> None:
    def say(item: Item) -> Opinion | None:
        raise BadRow("criteria", "it has no criteria")

    assert judged(Lengths(say), of_prompts(["one"]))["failed"].tolist() == [True]


@pytest.mark.parametrize("problem", [ValueError("a bug"), BadRow("criteria", "it has none")])
def test_a_judge_that_raises_on_one_prompt_has_failed_on_its_responses_alone(problem: Exception) -> None:
    def say(item: Item) -> Opinion | None:
        if "one" in item.texts:
            raise problem
        return None

    found = judged(Lengths(say), of_prompts(["one", "three"], ["to", "four"]), "pairwise")
    assert found["failed"].tolist() == [True, True, False, False]
    assert found["total"].tolist()[2:] == [2.0, 4.0]


def test_what_must_stop_the_run_stops_it() -> None:
    def say(item: Item) -> Opinion | None:
        raise PostTrainError("the judge's budget is spent")

    with pytest.raises(PostTrainError, match="budget is spent"):
        judged(Lengths(say), of_prompts(["one"]))


def test_it_is_not_ended_by_the_time_limit_of_rewards() -> None:
    started = time.monotonic()
    found = judged(Lengths(pause_s=0.5), of_prompts(["one", "two"]), timeout=0.1)
    assert not found["failed"].any()
    assert time.monotonic() - started < 0.95  # both at once


def test_a_response_of_several_turns_is_shown_whole() -> None:
    judge, whole = Lengths(), of_prompts(["two"])
    turns = [{"role": "assistant", "content": "one"}, {"role": "user", "content": "And?"}]
    said = RewardBatch(
        whole.prompts,
        whole.responses,
        {},
        whole.tokens,
        whole.truncated,
        whole.sources,
        [],
        [[*turns, *whole.messages[0]]],
    )
    judged(judge, said)
    assert judge.seen[0].texts == ["assistant:\none\n\nuser:\nAnd?\n\nassistant:\ntwo"]


def test_a_resumed_run_needs_the_same_judge_at_any_address() -> None:
    def options(**spec: Any) -> dict[str, Any]:
        return JudgeReward(JudgeSpec(**{"model": "m", "endpoint": "http://a/v1", **spec})).resume_options()

    assert options() == options(endpoint="http://b:1/v1", retries=1, api_key_env="KEY")
    assert "KEY" not in str(options(api_key_env="KEY"))
    for spec in ({"model": "n"}, {"kind": "score"}, {"seed": 1}, {"principles": 1}):
        assert options() != options(**spec)


def test_a_resumed_run_needs_the_same_criteria_wherever_their_file_is(tmp_path: Path) -> None:
    def options(name: str, text: str) -> dict[str, Any]:
        (tmp_path / name).write_text(json.dumps([text]))
        return JudgeReward(JudgeSpec("m", kind="rubric", criteria=str(tmp_path / name))).resume_options()

    assert options("a.json", "It is right.") == options("b.json", "It is right.")
    assert options("a.json", "It is right.") != options("a.json", "It is kind.")
