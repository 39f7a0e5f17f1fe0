"""Scripted judges are recognised as what they are, and the verdict says it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.annotators import Items

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.agreement.report import report_of, summary
from lit_posttrain.feedback.agreement.verdict import Verdict, verdicts_of
from lit_posttrain.feedback.agreement.votes import votes_of


def people(items: Items, right: float = 0.9, count: int = 3) -> list[Decision]:
    return [one for n in range(count) for one in items.people(f"person {n}", right, n)]


def verdict(decisions: list[Decision]) -> Verdict:
    """On the last judge."""
    return verdicts_of(report_of(votes_of(decisions), resamples=300))[-1]


def test_a_consistent_judge_is_fit_for_training() -> None:
    items = Items(400)
    found = verdict([*people(items), *items.consistent()])
    assert found.advice == "train"
    assert str(found).startswith("consistent: train on it: it agrees with people on 89")


def test_a_positional_judge_is_called_that() -> None:
    items = Items(400)
    found = verdict([*people(items), *items.positional()])
    assert found.advice == "do not"
    assert "changes its verdict on 100.0 % of pairs" in str(found)
    assert "prefers what it is shown first, in 100.0 %" in str(found)
    assert "it sees a tie on 100.0 % of pairs" in str(found)


def test_a_length_driven_judge_is_called_that() -> None:
    items = Items(400, tied=0.5)
    found = verdict([*people(items), *items.length_driven()])
    assert found.advice == "do not"
    assert "the longer response wins 100.0 %, with people 6" in str(found)
    assert "swapped" not in str(found)
    assert "shown" not in str(found)


def test_a_judge_that_flips_some_verdicts_calls_for_care() -> None:
    items = Items(1500, seed=2)
    found = verdict([*people(items), *items.flipping(0.129)])
    assert found.advice == "careful"
    assert "it changes its verdict on 1" in str(found)
    assert "agrees with people on 89" in str(found)


def test_a_judge_at_random_is_no_better_than_chance() -> None:
    items, rng = Items(400), np.random.default_rng(5)
    found = verdict([*people(items), *items.judge("random", lambda i: [float(p) for p in rng.random(2)])])
    assert found.advice == "do not"
    assert "no more than by chance" in str(found)


def test_a_judge_that_may_be_at_random_is_not_trusted() -> None:
    items = Items(100)
    better = [float(one > other) for one, other in items.quality]
    seen = [better[i] if i < 54 else 1 - better[i] for i in range(100)]
    found = verdict([*people(items, 1.0), *items.judge("half", lambda i: [seen[i]] * 2)])
    assert found.advice == "do not"
    assert "no more than by chance: on 54.0 %" in str(found)


def test_a_weak_judge_agrees_less_than_people_do() -> None:
    items, rng = Items(600), np.random.default_rng(5)
    right = rng.random(600) < 0.7
    seen = [[float((items.quality[i, 0] > items.quality[i, 1]) == right[i])] * 2 for i in range(600)]
    found = verdict([*people(items, 0.95), *items.judge("weak", lambda i: seen[i])])
    assert found.advice == "careful"
    assert "less than two people do" in str(found)


def test_an_overconfident_judge_is_off() -> None:
    items, rng = Items(600), np.random.default_rng(5)
    right = rng.random(600) < 0.7
    sure = [0.99 if (items.quality[i, 0] > items.quality[i, 1]) == right[i] else 0.01 for i in range(600)]
    assert "expected calibration error" in str(verdict([*people(items), *items.judge("sure", lambda i: [sure[i]] * 2)]))
    shy = [0.5 + (p - 0.5) * 0.3 for p in sure]
    assert "calibration" not in str(verdict([*people(items), *items.judge("shy", lambda i: [shy[i]] * 2)]))


def test_failed_calls_are_told() -> None:
    items = Items(100)
    judged = items.consistent()
    lost = [Decision(f"lost {n}", str(n), "consistent", outcome="failed", judge=judged[0].judge) for n in range(40)]
    found = verdict([*people(items), *judged, *lost])
    assert found.advice == "careful"
    assert "28.6 % of its answers are unparsable or failed" in str(found)
    assert verdict([*people(items), *lost]).advice == "do not"


def test_peoples_ties_are_not_the_judges() -> None:
    items = Items(60)
    torn = [one for n in range(2) for one in items.people(f"person {n}", 1.0, n, ties=0.8)]
    found = verdict([*torn, *items.consistent()])
    assert found.advice == "unknown"
    assert "neither it nor people see a tie on" in str(found)


def test_few_pairs_say_nothing() -> None:
    items = Items(20)
    assert verdict([*people(items), *items.consistent()]).advice == "unknown"
    assert verdict(items.consistent()).advice == "unknown"


@pytest.mark.parametrize(("right", "advice"), [(0.95, "train"), (0.78, "careful"), (0.52, "do not")])
def test_people_who_disagree_are_told_of(right: float, advice: str) -> None:
    items = Items(400)
    (found,) = verdicts_of(report_of(votes_of(people(items, right)), resamples=300))
    assert (found.name, found.advice) == ("people", advice)


def test_many_pairs_of_few_prompts_say_nothing() -> None:
    quality = np.random.default_rng(0).normal(size=9)
    responses = [{"text": letter} for letter in "abcdefghi"]
    ranks: list[int | None] = [int(rank) for rank in np.argsort(np.argsort(-quality))]
    ranked = [Decision(f"{n}", "i", f"person {n}", "Why?", responses, ranks=ranks) for n in range(2)]
    judge = Decision("j", "i", "judge", "Why?", responses, ranks=ranks, judge={"model": "m"})
    people, judged = verdicts_of(report_of(votes_of([*ranked, judge]), resamples=100))
    assert (people.advice, judged.advice) == ("unknown", "unknown")
    assert "pairs of 1 prompt have two votes; 30 are needed" in str(people)
    assert "pairs of 1 prompt were judged by people too" in str(judged)


def test_people_who_only_see_ties_are_not_enough_to_say() -> None:
    items = Items(40)
    (found,) = verdicts_of(report_of(votes_of([one for n in (0, 1) for one in items.people(f"{n}", 1, n, ties=1.0)])))
    assert found.advice == "unknown"
    assert "nan" not in str(found)


def test_a_calibrated_judge_on_few_pairs_is_not_off() -> None:
    off = 0
    for seed in range(20):
        items, rng = Items(40, seed), np.random.default_rng(seed)
        sure = rng.uniform(0.02, 0.98, 40)
        first = (rng.random(40) < sure).astype(float)  # people prefer the first one as often as the judge says
        items.quality[:, 0], items.quality[:, 1] = first, 1 - first
        judged = items.judge("judge", lambda i, sure=sure: [float(sure[i])] * 2)  # type: ignore[misc] # bound now
        off += "calibration" in str(verdict([*items.people("person", 1.0, 0), *judged]))
    assert off <= 3


def test_two_failed_answers_are_no_share() -> None:
    judged = Items(4).consistent()
    lost = [Decision(f"lost {n}", str(n), "consistent", outcome="failed", judge=judged[0].judge) for n in range(2)]
    assert "failed" not in str(verdict([*judged, *lost]))


def test_a_summary_of_nothing_has_no_figures() -> None:
    told = summary([])
    assert (told["pairs"], told["annotators"], told["people"]) == (0, [], None)
    (skipped,) = summary([Decision("s", "i", "Ann", outcome="skipped")])["annotators"]
    assert (skipped["votes"], skipped["decisions"]) == (0, {"skipped": 1})
