"""Dawid-Skene equals crowd-kit's, and finds the annotator who answers at random."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene as CrowdKit

from lit_posttrain.feedback.agreement.dawid_skene import CATEGORIES, dawid_skene
from lit_posttrain.feedback.agreement.votes import Floats

CODES = list(CATEGORIES.values())


def planted(seed: int, right: list[float], pairs: int = 200, missing: float = 0.3) -> tuple[Floats, Floats]:
    """The truth of each pair, and verdicts of annotators that are right so often."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(CODES, pairs, p=[0.4, 0.2, 0.4])
    wrong = rng.choice(CODES, (len(right), pairs))
    said = np.where(rng.random(wrong.shape) < np.array(right)[:, None], truth, wrong)
    said[rng.random(said.shape) < missing] = np.nan
    return truth, said


@pytest.mark.parametrize("seed", range(3))
def test_it_is_crowd_kits_on_both_ways_round(seed: int) -> None:
    _, said = planted(seed, [0.9, 0.7, 0.5, 0.2, 0.8])
    both = np.concatenate([said, -said], axis=1)
    rows = [(pair, who, both[who, pair]) for who, pair in np.argwhere(~np.isnan(both))]
    theirs = CrowdKit(n_iter=60, tol=-np.inf).fit(pd.DataFrame(rows, columns=["task", "worker", "label"]))
    ours, later = (dawid_skene(said, most_rounds=rounds, tolerance=0) for rounds in (60, 61))  # its M-step comes last
    assert theirs.probas_ is not None
    order = np.flatnonzero(~np.isnan(said).all(0))
    expected = theirs.probas_.loc[order, CODES].to_numpy()
    assert np.abs(ours.probabilities[order] - expected).max() < 1e-6
    assert theirs.errors_ is not None
    for who in range(len(said)):
        errors = theirs.errors_.loc[who].reindex(index=CODES, columns=CODES).fillna(0).to_numpy()  # said, true
        assert np.abs(later.confusion[who] - errors.T).max() < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_labels_do_not_depend_on_which_response_is_the_first(seed: int) -> None:
    _, said = planted(seed, [0.9, 0.7, 0.5, 0.2, 0.8], missing=0.1)
    turned = np.random.default_rng(seed).random(said.shape[1]) < 0.5
    share = dawid_skene(said).share
    again = dawid_skene(np.where(turned, -said, said)).share
    assert np.where(turned, 1 - again, again) == pytest.approx(share, abs=1e-6)


def test_a_careful_annotator_counts_more_than_two_careless_ones() -> None:
    truth, said = planted(0, [0.95, 0.95, 0.05, 0.05, 0.05], pairs=800, missing=0.0)
    fitted = dawid_skene(said)
    best = np.array(CODES)[fitted.probabilities.argmax(1)]
    votes = np.stack([(said == code).sum(0) for code in CODES])
    assert (best == truth).mean() > 0.94 > 0.85 > (np.array(CODES)[votes.argmax(0)] == truth).mean()
    exact = [np.diag(matrix).mean() for matrix in fitted.confusion]
    assert min(exact[:2]) > 0.9
    assert max(exact[2:]) < 0.5


def test_pairs_without_a_vote_have_no_label() -> None:
    fitted = dawid_skene(np.array([[1.0, np.nan, -1.0], [1.0, np.nan, 0.0]]))
    assert np.isnan(fitted.share).tolist() == [False, True, False]
