"""Comparisons in both orders: expected values by hand, and judges with known faults."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.judges import ScriptedBackend, choice, item, opinion, parts, question

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.judges.backend import Call, CallFailed, Reply
from lit_posttrain.judges.building import judge_of
from lit_posttrain.judges.kinds.pairs import ranks_of
from lit_posttrain.judges.spec import JudgeSpec


def by_length(call: Call) -> Reply:
    """Soft, by length: A gets a share of the letters."""
    shown = parts(call)
    a, b = len(shown["response A"]), len(shown["response B"])
    return choice(A=a / (a + b), B=b / (a + b))


def test_pairwise_averages_both_orders() -> None:
    def script(call: Call) -> Reply:
        first = parts(call)["response A"] == "good"
        return choice(A=0.9, B=0.1) if first else choice(A=0.4, B=0.6)

    said, backend = opinion(script, item("good", "bad"))
    assert said.probability == pytest.approx((0.9 + 0.6) / 2)
    assert said.details["orders"] == pytest.approx([0.9, 0.6])
    assert said.scores == pytest.approx([0.75, 0.25])
    assert (said.outcome, said.ranks, said.calls) == ("verdict", [0, 1], 2)
    assert said.details["choice_mass"] == 0.9
    assert all(call.choices == ("A", "B") for call in backend.calls)


def test_probabilities_are_of_the_choices_alone() -> None:
    said, _ = opinion(lambda call: choice(mass=0.5, A=0.2, B=0.2), item("x", "y"))
    assert (said.probability, said.ranks) == (0.5, [0, 0])


def test_a_judge_that_always_answers_a_says_nothing_and_is_seen() -> None:
    said, _ = opinion(lambda call: choice(A=1.0, B=0.0), item("x", "y"))
    assert (said.outcome, said.probability, said.ranks) == ("verdict", 0.5, [0, 0])
    assert said.details["orders"] == [1.0, 0.0]
    said, _ = opinion(lambda call: Reply("It is better.\nVerdict: A"), item("x", "y"), kind="verdict")
    assert (said.probability, said.ranks) == (0.5, [0, 0])
    assert said.details["orders"] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("first", "second", "soft", "tie"),
    [(0.9, 0.6, 0.75, 0.75), (0.9, 0.3, 0.6, 0.5), (1.0, 0.5, 0.75, 0.5), (0.5, 0.5, 0.5, 0.5)],
)
def test_disagreement_is_soft_or_a_tie(first: float, second: float, soft: float, tie: float) -> None:
    """first, second: the probability that the first response is better, where it is shown first and second."""

    def script(call: Call) -> Reply:
        p = first if parts(call)["response A"] == "one" else 1 - second
        return choice(A=p, B=1 - p)

    for way, expected in (("soft", soft), ("tie", tie)):
        said, _ = opinion(script, item("one", "other"), disagreement=way)
        assert said.probability == pytest.approx(expected)
        assert said.details["orders"] == pytest.approx([first, second])


def test_all_pairs_of_more_responses() -> None:
    said, backend = opinion(by_length, item("a" * 3, "b", "c" * 2))
    assert len(backend.calls) == 6
    assert said.scores == pytest.approx([(3 / 4 + 3 / 5) / 2, (1 / 4 + 1 / 3) / 2, (2 / 5 + 2 / 3) / 2])
    assert (said.ranks, said.probability) == ([0, 2, 1], None)
    assert said.details["pairs"] == [[0, 1, 0.75, 0.75], [0, 2, 0.6, 0.6], [1, 2, 0.333333, 0.333333]]


def test_a_written_verdict() -> None:
    def script(call: Call) -> Reply:
        better = "A" if parts(call)["response A"] == "good" else "B"
        return Reply(f"{better} is right.\n\n**Verdict: {better}**\n")

    said, backend = opinion(script, item("bad", "good"), kind="verdict", max_tokens=99, seed=3)
    assert (said.probability, said.ranks, said.details["orders"]) == (0.0, [1, 0], [0.0, 0.0])
    assert said.reason == (
        "(A is response 1, B is response 2) B is right.\n\n(A is response 2, B is response 1) A is right."
    )
    assert {(call.max_tokens, call.temperature, call.seed, call.choices) for call in backend.calls} == {
        (99, 0.0, 3, ())
    }


@pytest.mark.parametrize(
    "last", ["Verdict: A", "verdict: response A.", "Verdict: [[A]]", "__Verdict:__ A", "VERDICT : a"]
)
def test_forms_of_a_verdict(last: str) -> None:
    said, _ = opinion(lambda call: Reply(f"Because.\n{last}"), item("x", "y"), kind="verdict")
    assert said.details["orders"] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(""), "the reply is empty"),
        (Reply("I cannot compare these."), "'I cannot compare these'"),
        (Reply("Verdict: A\nNo wait."), "'No wait'"),
        (Reply("Verdict: A or B"), "is not a verdict"),
        (Reply("Verdict: C"), "is not a verdict"),
        (Reply("They said [[A]]"), "is not a verdict"),
        (Reply("Verdict: A", "length", tokens_out=7), "the reply was cut off after 7 tokens; raise max_tokens"),
        (Reply("<think>Verdict: A</think>"), "the reply is empty"),
    ],
)
def test_what_cannot_be_read_is_asked_again_and_has_no_score(reply: Reply, why: str) -> None:
    said, backend = opinion(lambda call: reply, item("x", "y"), kind="verdict", reasks=2)
    assert (said.outcome, said.scores, said.ranks, said.probability) == ("unparsable", [None, None], None, None)
    assert why in said.error
    assert said.calls == len(backend.calls) == 6
    by_seed = {(call.seed, call.temperature) for call in backend.calls}
    assert by_seed == {(0, 0.0), (1, 0.7), (2, 0.7)}  # a greedy reply would be the same again
    assert said.details["orders"] == [None, None]


def test_one_order_that_cannot_be_read_is_no_verdict() -> None:
    """Without the other order the verdict would be the position's."""

    def script(call: Call) -> Reply:
        return Reply("Verdict: A") if parts(call)["response A"] == "one" else Reply("Hm.")

    said, _ = opinion(script, item("one", "other"), kind="verdict", reasks=0)
    assert (said.outcome, said.scores) == ("unparsable", [None, None])
    assert said.details["orders"] == [1.0, None]


def test_a_call_that_fails_is_told_and_not_asked_again() -> None:
    def script(call: Call) -> Reply:
        if parts(call)["response A"] == "one":
            return Reply("Hm.")
        raise CallFailed("the endpoint refuses")

    said, backend = opinion(script, item("one", "other"), kind="verdict", reasks=3)
    assert (said.outcome, said.error, said.scores) == ("failed", "the endpoint refuses", [None, None])
    assert len(backend.calls) == 4 + 1


def test_what_stops_the_run_is_raised_when_all_calls_have_ended() -> None:
    ended = []

    def script(call: Call) -> Reply:
        if parts(call)["response A"] == "one":
            raise RuntimeError("the budget is spent")
        ended.append(call)
        return choice(A=1.0, B=0.0)

    with pytest.raises(RuntimeError, match="the budget is spent"):
        opinion(script, item("one", "other"))
    assert len(ended) == 1


def test_a_judge_that_is_about_to_say_something_else() -> None:
    said, backend = opinion(lambda call: Reply("I'm sorry", "stop", {"A": 0.9, "B": 0.1}, 1e-4), item("x", "y"))
    assert (said.outcome, len(backend.calls)) == ("unparsable", 2)
    assert said.error.startswith('A to B have 0.01% of the probability of the reply; it says "I\'m sorry"')


def test_an_unknown_mass_is_no_fault() -> None:
    said, _ = opinion(lambda call: choice(mass=math.nan, A=0.8, B=0.2), item("x", "y"))
    assert said.outcome == "verdict"
    assert "choice_mass" not in said.details


def test_a_ranking_in_both_orders() -> None:
    said, backend = opinion(lambda call: Reply("Reasons.\nRanking: B > A = C"), item("r0", "r1", "r2"), kind="listwise")
    assert [parts(call)["response A"] for call in backend.calls] == ["r0", "r2"]
    # in both orders B is r1, which is best; A and C are tied
    assert said.details["pairs"] == [[0, 1, 0.0, 0.0], [0, 2, 0.5, 0.5], [1, 2, 1.0, 1.0]]
    assert said.scores == [0.25, 1.0, 0.25]
    assert said.ranks == [1, 0, 1]


def test_a_ranking_by_position_is_all_ties() -> None:
    said, _ = opinion(lambda call: Reply("Ranking: A > B > C"), item("r0", "r1", "r2"), kind="listwise")
    assert (said.scores, said.ranks) == ([0.5, 0.5, 0.5], [0, 0, 0])
    assert said.details["pairs"] == [[0, 1, 1.0, 0.0], [0, 2, 1.0, 0.0], [1, 2, 1.0, 0.0]]


def test_a_ranking_of_two_is_a_probability() -> None:
    said, _ = opinion(
        lambda call: Reply("Ranking: A > B" if parts(call)["response A"] == "x" else "Ranking: A = B"),
        item("x", "y"),
        kind="listwise",
    )
    assert (said.probability, said.details["orders"]) == (0.75, [1.0, 0.5])


@pytest.mark.parametrize(
    "last", ["A > B", "Ranking: A > B", "Ranking: A > B > B", "Ranking: A > B > D", "Ranking: A>B>"]
)
def test_a_ranking_must_name_each_once(last: str) -> None:
    said, _ = opinion(lambda call: Reply(last), item("r0", "r1", "r2"), kind="listwise", reasks=0)
    assert said.outcome == "unparsable"


@pytest.mark.parametrize("kind", ["pairwise", "verdict", "listwise"])
def test_one_response_is_nothing_to_compare(kind: str) -> None:
    with pytest.raises(BadRow, match="compares from 2 to 26"):
        opinion(by_length, item("only"), kind=kind)


def test_principles_are_all_shown_or_drawn_and_averaged() -> None:
    said, backend = opinion(by_length, item("xxx", "y"))
    assert "principles" not in said.details
    assert all("is true as far as can be known" in question(call) for call in backend.calls)

    def script(call: Call) -> Reply:
        return choice(A=1.0, B=0.0) if "does what the person asked" in question(call) else choice(A=0.5, B=0.5)

    said, backend = opinion(script, item("xxx", "y"), principles=5)
    assert len(backend.calls) == 10
    assert sorted(said.details["principles"]) == ["careful", "harmless", "helpful", "honest", "unbiased"]
    assert said.details["orders"] == pytest.approx([(1.0 + 4 * 0.5) / 5, (0.0 + 4 * 0.5) / 5])
    one, _ = opinion(script, item("xxx", "y"), principles=1)
    other, _ = opinion(script, item("quite", "different"), principles=1)
    assert one.details["principles"] == other.details["principles"]  # of one prompt


def test_sums_in_another_order_are_ties() -> None:
    assert ranks_of([0.1 + 0.2, 0.3, None, 0.9]) == [1, 1, None, 0]


def identity(**spec: Any) -> Mapping[str, Any]:
    return judge_of(JudgeSpec("scripted", **spec), ScriptedBackend(by_length)).identity


def test_the_identity_has_what_changes_an_opinion_and_no_more(tmp_path: Path) -> None:
    for same in ({"max_tokens": 9}, {"temperature": 1.0}, {"seed": 1}, {"reasks": 5}, {"retries": 0}):
        assert identity(**same) == identity()
    (tmp_path / "c.yaml").write_text("- Be brief.")
    written = {"kind": "verdict"}
    changes: list[dict[str, Any]] = [
        {},
        {"disagreement": "tie"},
        {"principles": 1},
        {"principles": 1, "seed": 1},
        {"constitution": str(tmp_path / "c.yaml")},
        written,
        {**written, "max_tokens": 9},
        {**written, "temperature": 1.0},
        {**written, "seed": 1},
        {"kind": "listwise"},
        {"kind": "score"},
        {"kind": "rubric"},
        {"kind": "rubric", "criteria": "a"},
        {"kind": "rubric", "criteria": "b"},
    ]
    told = [json.dumps(dict(identity(**one)), sort_keys=True) for one in changes]
    assert len(set(told)) == len(changes)
