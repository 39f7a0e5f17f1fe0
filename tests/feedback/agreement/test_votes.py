"""Votes of several files meet by prompt and texts, whatever the order of responses, and rankings vote on pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lit_posttrain.data.feedback.record import Decision, item_id
from lit_posttrain.errors import PostTrainError
from lit_posttrain.feedback.agreement.report import report_of
from lit_posttrain.feedback.agreement.table import table_of
from lit_posttrain.feedback.agreement.votes import votes_of


def said(annotator: str, texts: str, prompt: Any = "Why?", **of: Any) -> Decision:
    responses = [{"text": text} for text in texts]
    return Decision(f"{annotator}-{texts}-{of}", item_id(prompt, responses), annotator, prompt, responses, **of)


def test_a_ranking_votes_on_its_pairs_and_unranked_ones_do_not() -> None:
    votes = votes_of([said("Ann", "abcd", ranks=[1, 0, 1, None])])
    assert [(p.first["text"], p.second["text"]) for p in votes.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert votes.share.tolist() == [[0.0, 0.5, 1.0]]
    assert votes.verdicts.tolist() == [[-1.0, 0.0, 1.0]]
    assert votes.prompt.tolist() == [0, 0, 0]


def test_votes_meet_whatever_the_order_of_the_responses_and_the_form_of_the_prompt() -> None:
    asked = [{"role": "user", "content": "Why?"}]
    judge = {"model": "m", "orders": [0.9, 0.7]}
    votes = votes_of([said("Ann", "ab", ranks=[0, 1]), said("judge", "ba", asked, probability=0.8, judge=judge)])
    assert len(votes.pairs) == 1
    assert votes.share[:, 0] == pytest.approx([1.0, 0.2])
    # b was shown first with 0.9 for it: so a, which comes first here, had 0.1 where it was shown second
    assert votes.by_order[1, 0] == pytest.approx([0.3, 0.1])
    assert [one.judge for one in votes.annotators] == [False, True]
    assert votes.people.tolist() == [0]


def test_the_place_of_a_response_is_known_from_the_order_shown() -> None:
    votes = votes_of([said("Ann", "abc", ranks=[0, 1, 2], order=[2, 0, 1])])
    np.testing.assert_equal(votes.by_order[0], [[1.0, np.nan], [np.nan, 1.0], [np.nan, 1.0]])


def test_a_judge_of_more_than_two_shows_both_orders_of_each_pair() -> None:
    judge = {"pairs": [[0, 1, 1.0, 0.0], [0, 2, 0.8, None]]}
    votes = votes_of([said("judge", "abc", ranks=[0, 1, 1], judge=judge)])
    np.testing.assert_equal(votes.by_order[0], [[1.0, 0.0], [0.8, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize("judge", [{"orders": 0.5}, {"orders": [0.5]}, {"orders": ["a", "b"]}, {"pairs": [0, 1]}])
def test_orders_that_are_none_are_told(judge: dict[str, Any]) -> None:
    with pytest.raises(PostTrainError, match=r"decision J-ab.* of J: `judge\.\w+` is .*; mend or remove it"):
        votes_of([said("J", "ab", probability=0.5, judge=judge)])


def test_the_last_decision_on_an_item_counts() -> None:
    votes = votes_of([said("Ann", "ab", ranks=[0, 1]), said("Ann", "ab", ranks=[1, 0])])
    assert votes.share.tolist() == [[0.0]]
    assert votes.annotators[0].replaced == 1


def test_the_latest_decision_counts_whatever_the_order_of_the_files() -> None:
    late = said("Ann", "ab", ranks=[0, 1], time="2026-01-02T00:00:00Z")
    early = said("Ann", "ab", ranks=[1, 0], time="2026-01-01T00:00:00Z")
    assert votes_of([late, early]).share.tolist() == votes_of([early, late]).share.tolist() == [[1.0]]


def test_a_vote_on_a_pair_of_another_item_is_replaced_and_told() -> None:
    votes = votes_of([said("Ann", "abc", ranks=[0, 1, 2]), said("Ann", "ba", ranks=[0, 1])])
    assert votes.share.tolist() == [[0.0, 1.0, 1.0]]
    assert votes.annotators[0].replaced == 1
    assert "on the same pair, replaced: Ann 1" in table_of(report_of(votes), [])


def test_the_model_of_a_response_may_come_from_a_later_record() -> None:
    known = said("Ben", "ba", ranks=[0, 1])
    known = replace(known, responses=[{**one, "model": f"m{one['text']}"} for one in known.responses])
    for decisions in ([said("Ann", "ab", ranks=[0, 1]), known], [known, said("Ann", "ab", ranks=[0, 1])]):
        (pair,) = votes_of(decisions).pairs
        assert {one["text"]: one["model"] for one in (pair.first, pair.second)} == {"a": "ma", "b": "mb"}


def test_names_do_not_control_the_terminal() -> None:
    votes = votes_of([said("A\x1b[2Jnn", "ab", ranks=[0, 1]), said("Ben", "ab", ranks=[0, 1])])
    assert "\x1b" not in table_of(report_of(votes), [])


def test_what_is_no_verdict_is_counted_and_votes_on_nothing() -> None:
    votes = votes_of(
        [said("Ann", "ab", ranks=[0, 1]), said("Ann", "cd", outcome="skipped"), said("J", "ab", outcome="failed")]
    )
    assert [dict(one.outcomes) for one in votes.annotators] == [{"verdict": 1, "skipped": 1}, {"failed": 1}]
    assert np.isnan(votes.share[1]).all()


def test_two_versions_of_a_judge_are_two_annotators() -> None:
    decisions = [
        Decision(v, "i", "J", "Why?", [{"text": "a"}, {"text": "b"}], probability=p, judge={"version": v})
        for v, p in (("1", 0.25), ("2", 0.75))
    ]
    votes = votes_of(decisions)
    assert [one.name for one in votes.annotators] == ["J (1)", "J (2)"]
    assert votes.share.tolist() == [[0.25], [0.75]]


def test_equal_responses_are_no_pair() -> None:
    votes = votes_of([said("Ann", "aab", ranks=[0, 2, 1])])
    assert [(p.first["text"], p.second["text"]) for p in votes.pairs] == [("a", "b")]


def test_the_folder_of_a_judges_model_is_not_shown() -> None:
    votes = votes_of([said("package:small/Small-1B.gguf score", "ab", judge={"model": "package:small/Small-1B.gguf"})])
    assert votes.annotators[0].name == "Small-1B.gguf score"
    assert votes.annotators[0].model == "package:small/Small-1B.gguf"


def test_ratings_of_people_are_compared_by_criterion() -> None:
    rated = {"Ann": ([1, 5], [2, None]), "Ben": ([2, 4], [2, 3]), "Cem": ([5, 1], [3, 1])}
    decisions = [
        said(name, "ab", ranks=[0, 1], criteria={"clear": clear, "true": true}) for name, (clear, true) in rated.items()
    ]
    decisions.append(said("Ann", "cd", ranks=[0, 1], criteria={"clear": [3, 3]}))
    votes = votes_of(decisions)
    np.testing.assert_equal(votes.ratings["true"].scores, [[2, np.nan], [2, 3], [3, 1]])
    report = report_of(votes)
    assert (report.criteria["clear"].n, report.criteria["true"].n) == (2, 2)  # c and d were rated once
    assert "people on true: Krippendorff's alpha" in table_of(report, [])
