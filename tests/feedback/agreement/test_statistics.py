"""kappa and alpha equal scikit-learn's, statsmodels' and krippendorff's to 1e-9, with missing votes, also of resampled
sums; intervals hold what they should."""

from __future__ import annotations

import math
import warnings

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from lit_posttrain.feedback.agreement import statistics
from lit_posttrain.feedback.agreement.intervals import Bootstrap
from lit_posttrain.feedback.agreement.votes import Floats

CODES = [-1.0, 0.0, 1.0]


def random_table(seed: int, annotators: int = 4, pairs: int = 60, missing: float = 0.3) -> Floats:
    """Verdicts of annotators that agree more or less; NaN for missing ones."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(CODES, pairs, p=[0.45, 0.15, 0.4])
    noise = rng.choice(CODES, (annotators, pairs))
    said = np.where(rng.random((annotators, pairs)) < rng.uniform(0.1, 0.9), truth, noise)
    said[rng.random(said.shape) < missing] = np.nan
    return said


def doubled(table: Floats) -> Floats:
    """Every pair both ways round, as the libraries are to see it."""
    return np.concatenate([table, -table], axis=1)


@pytest.mark.parametrize("seed", range(8))
def test_cohens_kappa_is_sklearns(seed: int) -> None:
    table = random_table(seed)
    both = ~np.isnan(table[0]) & ~np.isnan(table[1])
    matrix = statistics.both_ways(statistics.confusion(table[0], table[1])).sum(0)
    seen = doubled(table[:2, both])
    assert statistics.cohen(matrix) == pytest.approx(cohen_kappa_score(seen[0], seen[1], labels=CODES), abs=1e-9)
    one_way = statistics.confusion(table[0], table[1]).sum(0)
    expected = cohen_kappa_score(table[0, both], table[1, both], labels=CODES)
    assert statistics.cohen(one_way) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_fleiss_kappa_is_statsmodels(seed: int) -> None:
    count = statistics.counts(random_table(seed, annotators=5, missing=0.0))
    expected = fleiss_kappa(np.concatenate([count, count[:, ::-1]]))
    assert statistics.fleiss(statistics.fleiss_parts(count).sum(0)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_alpha_is_krippendorffs_with_missing_votes(seed: int) -> None:
    table = random_table(seed)
    parts = statistics.coincidences(statistics.counts(table))
    for seen, matrix in ((table, parts.sum(0)), (doubled(table), statistics.both_ways(parts).sum(0))):
        expected = krippendorff.alpha(reliability_data=seen, level_of_measurement="ordinal", value_domain=CODES)
        assert statistics.alpha(matrix) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_alpha_of_scores_is_krippendorffs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=40) + rng.normal(size=(4, 40)), 1) + 3
    scores[rng.random(scores.shape) < 0.4] = np.nan
    expected = krippendorff.alpha(reliability_data=scores, level_of_measurement="interval")
    found = statistics.interval_alpha(statistics.interval_parts(scores).sum(0))
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_leading_axis_of_resamples_changes_nothing() -> None:
    table = random_table(3)
    parts = statistics.both_ways(statistics.confusion(table[0], table[1]))
    sums = np.stack([parts[:30].sum(0), parts.sum(0)])
    for statistic in (statistics.agreement, statistics.decided_agreement, statistics.cohen, statistics.alpha):
        assert statistic(sums) == pytest.approx([statistic(sums[0]), statistic(sums[1])])
    count = statistics.counts(random_table(3, missing=0.0))
    fleiss = statistics.fleiss_parts(count)
    assert statistics.fleiss(np.stack([fleiss.sum(0)] * 2)) == pytest.approx([statistics.fleiss(fleiss.sum(0))] * 2)


def test_a_file_whose_first_response_is_always_better_has_a_kappa() -> None:
    gold, judge = np.ones(100), np.where(np.arange(100) < 80, 1.0, -1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # by which scikit-learn tells that it has no kappa for one of the two
        assert cohen_kappa_score(gold, judge) == 0
    matrix = statistics.both_ways(statistics.confusion(gold, judge)).sum(0)
    assert statistics.cohen(matrix) == pytest.approx(0.6)  # (0.8 - 0.5) / (1 - 0.5)


def test_intervals_of_a_share_are_those_of_the_normal_approximation() -> None:
    won = (np.random.default_rng(0).random(2000) < 0.3).astype(float)
    found = Bootstrap(np.arange(2000)).estimate(np.stack([won, np.ones(2000)], 1), statistics.ratio, 2000)
    half = 1.96 * math.sqrt(won.mean() * (1 - won.mean()) / 2000)
    assert found.value == pytest.approx(won.mean())
    assert (found.low, found.high) == pytest.approx((won.mean() - half, won.mean() + half), abs=0.003)
    assert Bootstrap(np.arange(2000)).estimate(np.stack([won, np.ones(2000)], 1), statistics.ratio, 2000) == found


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    won = np.repeat((np.random.default_rng(0).random(100) < 0.3).astype(float), 20)  # twenty pairs that say the same
    parts = np.stack([won, np.ones(2000)], 1)
    alone = Bootstrap(np.arange(2000)).estimate(parts, statistics.ratio, 2000)
    together = Bootstrap(np.arange(2000) // 20).estimate(parts, statistics.ratio, 2000)
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_nothing_to_say_is_no_number() -> None:
    found = Bootstrap(np.arange(3)).estimate(np.zeros((3, 2)), statistics.ratio, 0)
    assert not found
    assert found.told() == {"value": None, "low": None, "high": None, "n": 0}
