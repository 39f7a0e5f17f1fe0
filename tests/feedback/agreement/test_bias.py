"""Planted habits are within the reported intervals."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.annotators import Items

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.agreement.bias import Bias, bias_of
from lit_posttrain.feedback.agreement.intervals import Bootstrap, Estimate
from lit_posttrain.feedback.agreement.votes import votes_of


def bias(decisions: list[Decision], items: Items) -> Bias:
    """Of the judge of some decisions, beside three people."""
    people = [one for n in range(3) for one in items.people(f"person {n}", 0.9, n)]
    votes = votes_of([*people, *decisions])
    return bias_of(votes, 3, Bootstrap(votes.prompt))


def holds(estimate: Estimate, planted: float) -> bool:
    return estimate.low - 1e-9 <= planted <= estimate.high + 1e-9


def test_a_consistent_judge() -> None:
    items = Items(400, seed=3)
    found = bias(items.consistent(), items)
    assert found.swap_consistency.value == 1
    assert holds(found.first_position, 0.5)
    assert holds(found.longer_excess, 0)
    assert found.agreement[0] == found.agreement[1] == found.agreement[2]


def test_a_positional_judge() -> None:
    items = Items(400)
    found = bias(items.positional(), items)
    assert found.swap_consistency.value == 0
    assert found.first_position.value == 1
    assert [one.value for one in found.wins] == [1, 0, 0.5]  # both orders averaged have no position bias
    assert holds(found.agreement[0], 0.5)
    assert not found.agreement[2]  # all ties
    assert holds(found.longer, 0.5)


def test_a_length_driven_judge() -> None:
    items = Items(400, tied=0.5)
    found = bias(items.length_driven(), items)
    assert found.longer.value == 1
    assert found.swap_consistency.value == 1
    said = items.quality[:, 0] > items.quality[:, 1]
    longer = np.sign(items.length[:, 0] - items.length[:, 1])
    people = np.where(longer > 0, said, ~said)[longer != 0].mean()  # of people who are always right
    assert 0.55 < found.longer_people.value < people
    assert found.longer_excess.low > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_a_judge_that_flips_so_many_verdicts(seed: int) -> None:
    items = Items(2999, seed)
    found = bias(items.flipping(0.129), items)
    assert holds(found.swap_consistency, 1 - 0.129)
    assert holds(found.first_position, 0.5 + 0.129 / 2)
    assert found.first_position.high - found.first_position.low < 0.03


def test_a_judge_that_prefers_its_own() -> None:
    items = Items(600, models=("hub/Small-1B", "other"))
    rng = np.random.default_rng(1)
    own = rng.random(600) < 0.3
    said = [[1.0] * 2 if own[i] else [float(items.quality[i, 0] > items.quality[i, 1])] * 2 for i in range(600)]
    found = bias(items.judge("judge", lambda i: said[i], model="runs/small-1b"), items)
    assert holds(found.own, 0.3 + 0.7 / 2)
    assert found.own_excess.low > 0.05
    assert not bias(items.judge("judge", lambda i: said[i], model="third"), items).own


def test_two_folders_of_one_name_are_two_models() -> None:
    items = Items(60, models=("runs/first/final", "runs/second/final"))
    found = bias(items.judge("judge", lambda i: [1.0, 1.0], model="runs/second/final"), items)
    assert (found.own.value, found.own.n) == (0, 60)


def test_position_of_a_person_comes_from_the_order_on_record() -> None:
    items = Items(400)
    people = [one for n in range(2) for one in items.people(f"person {n}", 0.9, n)]
    votes = votes_of(people)
    found = bias_of(votes, 0, Bootstrap(votes.prompt))
    assert holds(found.first_position, 0.5)
    assert found.first_position.n == 400
    assert not found.swap_consistency


def test_a_tie_is_half_a_win() -> None:
    items = Items(200)
    found = bias(items.judge("judge", lambda i: [0.5, 0.5]), items)
    assert found.first_position.value == found.longer.value == 0.5
    assert found.swap_consistency.value == 1
