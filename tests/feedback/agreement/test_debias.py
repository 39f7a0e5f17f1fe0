"""Planted biases are found and taken out; the regression is statsmodels'."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.annotators import Items
from statsmodels.api import GLM, families

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.agreement import debias
from lit_posttrain.feedback.agreement.bias import bias_of
from lit_posttrain.feedback.agreement.debias import Debiasing, corrections, debiased
from lit_posttrain.feedback.agreement.intervals import Bootstrap
from lit_posttrain.feedback.agreement.votes import Votes, verdicts, votes_of


def biased(items: Items, position: float, length: float, quality: float = 1.0) -> list[Decision]:
    """A judge whose log odds have so much of each."""
    longer = np.log2((items.length[:, 0] + 1) / (items.length[:, 1] + 1))
    better = np.sign(items.quality[:, 0] - items.quality[:, 1])
    odds = quality * better + length * longer
    return items.judge("judge", lambda i: [float(1 / (1 + np.exp(-odds[i] - s * position))) for s in (1, -1)])


def people(items: Items) -> list[Decision]:
    return [one for n in range(3) for one in items.people(f"person {n}", 1.0, n)]


def corrected(decisions: list[Decision]) -> tuple[Votes, Votes, Debiasing]:
    votes = votes_of(decisions)
    after, found = debiased(votes)
    return votes, after, found["judge"]


def test_planted_biases_are_found_and_taken_out() -> None:
    items = Items(400)
    votes, after, found = corrected([*people(items), *biased(items, 1.2, 0.8)])
    assert found.quality.value == pytest.approx(1, abs=0.03)  # the prior pulls a little
    assert found.position.value == pytest.approx(1.2, abs=0.03)
    assert found.length.value == pytest.approx(0.8, abs=0.03)
    assert bias_of(votes, 3, Bootstrap(votes.prompt)).longer_excess.low > 0.05
    right = (items.quality[:, 0] > items.quality[:, 1]).astype(float)
    assert ((votes.share[3] > 0.5) != right).mean() > 0.05
    assert ((after.share[3] > 0.5) == right).all()


def test_noisy_judges_have_their_bias_in_the_interval() -> None:
    items, rng = Items(600, seed=1), np.random.default_rng(3)
    drawn = [[float(rng.random() < p) for p in one.judge["orders"]] for one in biased(items, 0.7, 0.5) if one.judge]
    votes, _, found = corrected([*people(items), *items.judge("judge", lambda i: drawn[i])])
    assert found.quality.low < 1 < found.quality.high
    assert found.position.low < 0.7 < found.position.high
    assert found.length.low < 0.5 < found.length.high
    (change,) = corrections(votes, {"judge": found}).values()
    assert change.brier[1].value < change.brier[0].value
    assert change.longer[0].low > 0
    assert abs(change.longer[1].value) < change.longer[0].value


def test_a_judge_of_length_or_place_alone_says_nothing_afterwards() -> None:
    items = Items(400, tied=0.5)
    votes = votes_of([*people(items), *items.length_driven(), *items.positional()])
    after, _ = debiased(votes)
    assert np.abs(after.share[3:] - 0.5).mean(1) == pytest.approx([0, 0], abs=0.05)


def test_a_judge_without_bias_keeps_its_verdicts() -> None:
    items = Items(400, tied=0.5)
    votes = votes_of([*people(items), *items.consistent()])
    after, _ = debiased(votes)
    np.testing.assert_equal(verdicts(after.share), verdicts(votes.share))


def test_a_judge_that_shows_no_order_has_no_position() -> None:
    items = Items(100)
    once = [
        Decision(
            one.id, one.item, "judge", one.prompt, one.responses, probability=one.probability, judge={"model": "m"}
        )
        for one in biased(items, 0.0, 0.8)
    ]
    _, after, found = corrected([*people(items), *once])
    assert found.position.value == pytest.approx(0)
    assert found.length.value == pytest.approx(0.8, abs=0.1)
    assert ((after.share[3] > 0.5) == (items.quality[:, 0] > items.quality[:, 1])).all()


def test_position_is_taken_out_of_a_single_order() -> None:
    items, rng = Items(400), np.random.default_rng(3)
    places = rng.permuted(np.tile([0, 1], (400, 1)), axis=1)  # of what was shown first and second
    once = []
    for one, order in zip(biased(items, 1.2, 0.0), places.tolist(), strict=True):
        assert one.judge is not None
        seen = one.judge["orders"][order[0]]
        once.append(replace(one, judge={"model": "m"}, order=order, probability=seen))
    votes, after, found = corrected([*people(items), *once])
    assert found.position.value == pytest.approx(1.2, abs=0.1)
    right = (items.quality[:, 0] > items.quality[:, 1]).astype(float)
    assert ((votes.share[3] > 0.5) != right).mean() > 0.2
    assert ((after.share[3] > 0.5) == right).all()


def test_without_people_nothing_is_corrected() -> None:
    items = Items(400)
    votes = votes_of(biased(items, 1.0, 0.8))
    after, found = debiased(votes)
    assert found == {}
    np.testing.assert_equal(after.share, votes.share)


def test_the_regression_is_statsmodels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(300, 3)), rng.integers(0, 3, 300).astype(float)
    said = 1 / (1 + np.exp(-features @ [1.0, -0.5, 0.2] + rng.normal(size=300)))
    monkeypatch.setattr(debias, "_SPREAD", 1e6)  # no prior
    expected = GLM(said, features, families.Binomial(), freq_weights=weight).fit().params
    assert debias._logistic(features, said, weight) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_labels_are_calibrated(soft: bool) -> None:
    items, rng = Items(3000), np.random.default_rng(4)
    better = (items.quality[:, 0] > items.quality[:, 1]).astype(float)
    sure = rng.beta(1, 1, 3000) if soft else np.where(rng.random(3000) < 0.79, better, 1 - better)
    if soft:  # people prefer the first response as often as the judge says
        better = (rng.random(3000) < sure).astype(float)
    items.quality[:, 0], items.quality[:, 1] = better, 1 - better
    once = items.people("person", 1.0, 0)
    _, after, found = corrected([*once, *items.judge("judge", lambda i: [float(sure[i])] * 2)])
    for share in (after.share[1], found.held_out):
        confidence = np.maximum(share, 1 - share)
        right = (share > 0.5) == (better == 1)
        bins = np.minimum((confidence * 10).astype(int), 9)
        off = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in np.unique(bins)]
        assert sum(off) / len(share) < 0.03


def test_a_judge_that_is_always_right_beside_chosen_responses() -> None:
    items = Items(100)
    for index in range(100):  # in such a file the first response is always the better one
        items.quality[index] = sorted(items.quality[index], reverse=True)
    after, _ = debiased(votes_of([*items.people("gold", 1.0, 0), *items.consistent()]))
    assert (after.share[1] > 0.9).all()


def test_what_changed_is_told_of_held_out_labels() -> None:
    items, rng = Items(40), np.random.default_rng(1)
    votes, after, found = corrected(
        [*people(items), *items.judge("judge", lambda i: [float(p) for p in rng.random(2)])]
    )
    (change,) = corrections(votes, {"judge": found}).values()
    better = votes.consensus(votes.people)
    assert change.brier[1].value == pytest.approx(float(((found.held_out - better) ** 2).mean()))
    assert change.brier[1].value > float(((after.share[3] - better) ** 2).mean())
