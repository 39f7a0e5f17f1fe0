"""The sum of rewards, and rewards that raise, hang, or say what is no score."""

from __future__ import annotations

import logging
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rewards.test_rules import batch

from lit_posttrain.errors import PostTrainError
from lit_posttrain.rewards import FunctionReward, LengthPenalty, Regex, Reward, RewardBatch, RewardSum, refuse_failing
from lit_posttrain.rewards import time_limit as time_limit_module
from lit_posttrain.rewards.time_limit import TooLong, time_limit
from lit_posttrain.rewards.total import Rewarded

SAID = ["one", "two", "three"]


def summed(*functions: Callable[..., Any], timeout: float = 60.0, weights: tuple[float, ...] = ()) -> RewardSum:
    rewards = [
        FunctionReward(function, weight=weight)
        for function, weight in zip(functions, weights or (1.0,) * len(functions), strict=True)
    ]
    return RewardSum(rewards, timeout)


def failures(found: Rewarded) -> dict[str, int]:
    """On how many responses each reward failed."""
    return {name: int(failed.sum()) for name, failed in found.failed.items()}


def length(completions: list[str]) -> list[float]:
    return [float(len(said)) for said in completions]


def test_a_weighted_sum_whose_parts_are_kept() -> None:
    def twice(completions: list[str], answer: list[int], **rest: Any) -> torch.Tensor:
        assert set(rest) == {"prompts", "completion_ids", "other"}
        return torch.tensor(answer) * 2.0

    found = summed(length, twice, weights=(1.0, -0.5))(batch(SAID, answer=[1, 2, 3], other=["x"] * 3))
    assert found.total.tolist() == [3.0 - 1, 3.0 - 2, 5.0 - 3]
    assert {name: part.tolist() for name, part in found.scores.items()} == {"length": [3, 3, 5], "twice": [2, 4, 6]}
    assert failures(found) == {"length": 0, "twice": 0}


def test_nothing_to_say_is_no_zero() -> None:
    def sometimes(completions: list[str]) -> list[float | None]:
        return [None, 1.0, None]

    def rarely(completions: list[str]) -> list[float | None]:
        return [None, None, 2.0]

    found = summed(sometimes, rarely)(batch(SAID))
    assert found.total.isnan().tolist() == [True, False, False]
    assert found.total[1:].tolist() == [1.0, 2.0]


def _raises(said: str) -> float:
    raise KeyError("no such thing")


def _hangs(said: str) -> float:
    time.sleep(60)
    return 0.0


@pytest.mark.parametrize("fails", [_raises, _hangs, lambda said: math.nan, lambda said: math.inf])
def test_a_failure_costs_one_response_its_score_and_is_named(fails: Any, caplog: pytest.LogCaptureFixture) -> None:
    def picky(completions: list[str]) -> list[float]:
        return [fails(said) if said == "two" else 1.0 for said in completions]

    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        found = summed(length, picky, timeout=1.0)(batch(SAID))
    assert time.monotonic() - started < 15
    assert found.total.isnan().tolist() == [False, True, False], "what one reward fails on has no score at all"
    assert failures(found) == {"length": 0, "picky": 1}
    assert "reward picky failed on 1 of 3 responses, which have no score: data.jsonl:2: " in caplog.text


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda completions: [1.0], "reward <lambda> gave 1 scores for 4 responses; let it return a list with"),
        (lambda completions: torch.ones(len(completions), 2), "gave 4x2 scores for 4 responses"),
        (
            lambda completions: [_raises(said) for said in completions],
            r"KeyError: 'no such thing' \(.*test_total.py:\d+\); mend it",
        ),
        (lambda completions: [ValueError("none such") for _ in completions], "ValueError: none such; mend it"),
        (lambda completions: [_hangs(said) for said in completions], "longer than 0.2 s; raise reward_timeout"),
        (lambda completions: ["1.0"] * len(completions), "TypeError: it gave '1.0', which is no number"),
        (lambda completions: [[1.0]] * len(completions), r"TypeError: it gave \[1.0\], which is no number"),
        (lambda completions: torch.full((len(completions),), math.nan), "it gave nan, which is not finite"),
    ],
)
def test_a_reward_that_always_fails_is_an_error(reward: Any, said: str) -> None:
    rewards = summed(reward, timeout=0.2)

    def judged() -> None:
        rewards(batch([*SAID, "four"]))
        refuse_failing([rewards.tallies])

    with pytest.raises(PostTrainError, match=said) as caught:
        judged()
    if "scores for" not in said:
        assert re.search("first on (the prompt )?data.jsonl:1: ", str(caught.value))


@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        (0.5, "0.5"),
        (None, "None"),
        (np.float64(0.5), r"np.float64\(0.5\)"),
        (np.array(0.5), r"array\(0.5\)"),
        ({name * 9: 1.0 for name in SAID}, r"\{'oneone.* \.\.\."),
        ("123", "'123'"),
        ({0.0, 1.0, 2.0}, r"\{0.0, 1.0, 2.0\}"),
    ],
)
def test_what_is_no_list_is_told_at_the_first_call(returned: Any, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    told = f"reward mine returned {shown}; let it return a list with one number, or None, per completion"

    def mine(completions: list[str]) -> Any:
        return returned

    with pytest.raises(PostTrainError, match=f"^{told}$"):
        summed(mine)(batch(SAID))
    assert "one by one" not in caplog.text


@pytest.mark.parametrize(
    "returned",
    [np.array([1.0, 0.0, 1.0]), (True, False, np.True_), [np.float32(1), 0, torch.tensor(1)], torch.tensor([1, 0, 1])],
)
def test_numbers_of_every_kind_are_scores(returned: Any) -> None:
    def mine(completions: list[str]) -> Any:
        return returned

    assert summed(mine)(batch(SAID)).total.tolist() == [1.0, 0.0, 1.0]


def test_mistakes() -> None:
    with pytest.raises(PostTrainError, match="two are called length"):
        summed(length, length)
    with pytest.raises(PostTrainError, match="reward_timeout is 0"):
        summed(length, timeout=0)

    class Unmade(Reward):
        def __init__(self) -> None:
            pass

        def score(self, batch: RewardBatch) -> list[float]:
            return [0.0] * len(batch)

    with pytest.raises(PostTrainError, match=r"the constructor of Unmade must call super\(\).__init__\(weight, name\)"):
        RewardSum([Unmade()])


class Mine(Reward):
    """A reward whose code before the first call fails."""

    def __init__(self, where: str = "", needs: list[str] | str = "answer") -> None:
        super().__init__()
        self.where, self.needs = where, needs

    def score(self, batch: RewardBatch) -> list[float]:
        return [0.0] * len(batch)

    def prepare(self, device: Any) -> None:
        self._fail("prepare")

    def check(self, columns: Sequence[str], source: str) -> None:
        self._fail("check")

    def unusable(self, row: Mapping[str, Any]) -> str:
        self._fail("unusable")
        return ""

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise OSError("no\nserver")


@pytest.mark.parametrize("where", ["prepare", "check", "unusable"])
def test_code_that_fails_before_the_first_call_is_told_in_a_line(where: str) -> None:
    rewards = RewardSum([Mine(where, [])])
    calls: dict[str, Callable[[], None]] = {
        "prepare": lambda: rewards.prepare(torch.device("cpu")),
        "check": lambda: rewards.check(["answer"], "data.jsonl:1"),
        "unusable": lambda: rewards.check_rows([("data.jsonl:1", {})]),
    }
    with pytest.raises(PostTrainError, match=r"^reward mine fails at .*test_total.py:\d+: OSError: no server$"):
        calls[where]()


def test_rewards_that_cannot_be_added_up() -> None:
    with pytest.raises(PostTrainError, match=r"`needs` of Mine is a text; write a list of columns: \['answer'\]"):
        RewardSum([Mine()])
    with pytest.raises(PostTrainError, match="the weight of length is nan; it must be a finite number"):
        summed(length, weights=(math.nan,))


def test_a_reward_that_is_needed_and_is_not_there_is_named_before_the_first_call() -> None:
    rewards = summed(length)
    rewards.needed = frozenset({"length"})
    rewards.prepare(torch.device("cpu"))
    rewards.needed = frozenset({"length", "cost"})
    with pytest.raises(PostTrainError, match=r"none called cost, .* \(there are length\); add it, with `name: cost`"):
        rewards.prepare(torch.device("cpu"))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (
            "rewards.test_total.Mine",
            r"or name the class in place of FunctionReward: --model\.rewards\+=rewards\.test",
        ),
        (Mine, r"FunctionReward: Mine is a class; give a function, or name the class"),
        ("builtins.len", "takes `obj` only by position, and arguments are passed by name; write a Python function"),
        ("builtins.max", "the parameters of <built-in function max> cannot be told; write a Python function"),
        ("rewards.test_total.SAID", r"is \['one', 'two', 'three'\], not a function"),
    ],
)
def test_what_is_no_function_is_told_before_the_first_call(function: Any, told: str) -> None:
    with pytest.raises(PostTrainError, match=told):
        FunctionReward(function)


def test_code_that_catches_everything_does_not_catch_the_time_limit(caplog: pytest.LogCaptureFixture) -> None:
    def careless(completions: list[str]) -> list[float]:
        found = []
        for said in completions:
            try:
                time.sleep(30 if said == "bad" else 0)
                found.append(1.0)
            except Exception:
                found.append(0.0)
        return found

    with caplog.at_level(logging.WARNING):
        found = summed(careless, timeout=0.3)(batch(["good", "bad", "fine"]))
    assert found.total.isnan().tolist() == [False, True, False]
    assert found.total[0] == 1.0
    assert failures(found) == {"careless": 1}
    assert (
        "a batch of 3 failed (TooLong: it took longer than 0.3 s), so its responses are judged one by one"
        in caplog.text
    )


def test_a_reward_of_weight_0_has_no_say() -> None:
    def scorer(completions: list[str]) -> list[float | None]:
        return [-5.0, None]

    found = summed(scorer, length, weights=(1.0, 0.0))(batch(["a", "long"]))
    assert found.total[0] == -5.0
    assert found.total[1].isnan()
    assert found.scores["length"].tolist() == [1.0, 4.0]


def test_a_reward_of_weight_0_that_is_needed_masks_what_it_fails_on() -> None:
    def cost(completions: list[str]) -> list[float | Exception | None]:
        return [1.0, None, ValueError("no judge")]

    rewards = summed(length, cost, weights=(1.0, 0.0))
    assert rewards(batch(SAID)).total.tolist() == [3.0, 3.0, 5.0], "without need it has no say"
    rewards.needed = frozenset({"cost"})
    found = rewards(batch(SAID))
    assert found.total.isnan().tolist() == found.unshaped.isnan().tolist() == [False, True, True]
    assert found.total[0] == 3.0, "nor has it a part in the sum"
    assert failures(found) == {"length": 0, "cost": 1}


def test_a_number_that_is_not_finite_costs_one_score_and_no_second_call(caplog: pytest.LogCaptureFixture) -> None:
    """Also of a reward that compares the responses of a batch, which would say something else of each alone."""
    calls: list[int] = []

    def ranked(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        return [float(sorted(completions).index(said)) if said != "bad" else math.nan for said in completions]

    with caplog.at_level(logging.WARNING):
        found = summed(ranked)(batch(["c", "a", "bad"]))
    assert calls == [3]
    assert found.total[:2].tolist() == [2.0, 0.0]
    assert found.total[2].isnan()
    assert failures(found) == {"ranked": 1}
    assert "it gave nan, which is not finite" in caplog.text


def test_an_import_path_that_leads_nowhere_is_told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rewards_of_mine.py").write_text("import math\n\ndef short(completions):\n    return [1.0]\n")
    assert FunctionReward("rewards_of_mine.short").name == "short"
    with pytest.raises(PostTrainError, match=r"`rewards_of_mine` \(.*\) has no `shrt`; did you mean short\?"):
        FunctionReward("rewards_of_mine.shrt")
    with pytest.raises(PostTrainError, match=r"no module `rewards_of_others` in "):
        FunctionReward("rewards_of_others.short")


def test_what_everything_is_is_known_to_the_caller() -> None:
    """A batch may hold nothing but bad answers, on one rank or in one attempt, and others not."""

    def picky(completions: list[str]) -> list[float]:
        return [math.nan if said == "bad" else 1.0 for said in completions]

    one, other = summed(picky), summed(picky)
    assert one(batch(["bad", "bad"])).total.isnan().all()
    with pytest.raises(
        PostTrainError, match=r"reward picky fails on every response, first on the prompt data\.jsonl:1"
    ):
        refuse_failing([one.tallies, other.tallies])
    other(batch(["good"]))
    refuse_failing([one.tallies, other.tallies])
    other.begin()
    with pytest.raises(PostTrainError, match="every response"):
        refuse_failing([one.tallies, other.tallies])


def test_an_error_in_place_of_a_number_is_of_that_response_alone(caplog: pytest.LogCaptureFixture) -> None:
    def picky(completions: list[str]) -> list[float | Exception]:
        return [ValueError("no such thing") if said == "two" else 1.0 for said in completions]

    with caplog.at_level(logging.WARNING):
        found = summed(length, picky)(batch(SAID))
    assert found.total.isnan().tolist() == [False, True, False], "the other reward makes up for nothing"
    assert failures(found) == {"length": 0, "picky": 1}
    assert "failed on 1 of 3 responses, which have no score: data.jsonl:2: ValueError: no such thing" in caplog.text
    assert "one by one" not in caplog.text


def test_what_only_shapes_is_kept_apart() -> None:
    said = batch(["yes", "yes it is", "no"], [3, 9, 3])
    found = RewardSum([Regex("yes", weight=0.1), LengthPenalty(10, 7, weight=0.3)])(said)
    assert found.total[0] != found.total[1]
    assert found.unshaped.tolist() == [0.1, 0.1, 0.0]
    alone = RewardSum([LengthPenalty(10, 7)])(said)
    assert alone.unshaped.tolist() == alone.total.tolist(), "where nothing else is asked for it is what is asked for"
    beside = RewardSum([LengthPenalty(10, 7)])(said, alone=False)  # of an environment that gives rewards too
    assert beside.unshaped.tolist() == [0.0] * 3


def test_a_generator_is_gone_through_once() -> None:
    def scores(completions: list[str]) -> Any:
        return (math.nan if said == "two" else None if said == "three" else 1.0 for said in completions)

    found = summed(scores)(batch(SAID))
    assert found.total[0] == 1.0
    assert found.total[1:].isnan().all()
    assert list(failures(found).values()) == [1]


def test_what_a_reward_changes_nobody_else_sees() -> None:
    def vandal(prompts: list[Any], completions: list[str], answer: list[Any]) -> list[float]:
        for asked in prompts:
            asked[0]["content"] = asked[-1]["extra"] = "gone"
        completions[:] = [""] * len(completions)
        answer[0]["right"].append("gone")
        answer.clear()
        return [0.0, 0.0, 0.0]

    seen: list[Any] = []

    def witness(prompts: list[Any], completions: list[str], answer: list[Any]) -> list[float]:
        seen.extend([prompts, completions, answer])
        return [0.0, 0.0, 0.0]

    given = batch(SAID, answer=[{"right": [1]}, 2, 3])
    before = deepcopy(given)
    summed(vandal, witness)(given)
    assert seen == [before.prompts, before.responses, before.columns["answer"]]
    assert given == before


def test_a_bell_that_rings_as_the_call_ends_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(threading.Event):
        def set(self) -> None:
            if not hasattr(self, "rung"):
                self.rung = True
                raise TooLong("it took longer")
            super().set()

    # in that module alone: threads begin with an event of their own
    monkeypatch.setattr(time_limit_module, "threading", SimpleNamespace(**{**vars(threading), "Event": Late}))
    before, threads = signal.getsignal(signal.SIGVTALRM), threading.active_count()
    with pytest.raises(TooLong), time_limit(5.0):
        pass
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert threading.active_count() == threads


def test_a_time_limit_within_another_leaves_that_one() -> None:
    """Also where only the processor's time can end what runs."""

    def stuck() -> None:
        with time_limit(60.0):
            pass
        re.match(r"(a|a)*$", "a" * 60 + "b")

    begun = time.monotonic()
    with pytest.raises(TooLong, match=r"longer than 0\.5 s"), time_limit(0.5):
        stuck()
    assert time.monotonic() - begun < 10
    with pytest.raises(TooLong, match=r"longer than 0\.2 s"), time_limit(60.0), time_limit(0.2):
        time.sleep(10)
