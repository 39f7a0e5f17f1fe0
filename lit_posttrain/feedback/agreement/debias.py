"""Soft labels of a judge without what their place and their length add to the odds of responses.

Logistic regression of what the judge says in each order, on the pairs that people judged too:

    logit p = a * quality + b * place + c * log2(length / other length)

with place 1 if the first response was shown first and -1 if it was shown second, and the quality that people see, 2 *
share of their votes - 1. What is left for b and c is bias. Length-controlled AlpacaEval (Dubois et al. 2024) has such
terms too, with models in place of people.

By Bayes' rule follow the odds that the first response is better, given what the judge said: over the qualities 1, 0
and -1, as frequent as people see them, with the likelihood of the regression. To shift log odds by b and c would do for
probabilities, but not for certain verdicts: a judge that always takes the longer response would come to prefer the
shorter one. By Bayes' rule such a judge says nothing, as does one whose a is 0.

Bayes' rule takes both orders for independent evidence, which they are not: a certain judge says the same in both. So
the label is the probability sigmoid(t * those log odds), with the t that fits people's votes best (Platt 1999).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lit_posttrain.feedback.agreement.bias import mean
from lit_posttrain.feedback.agreement.intervals import FEW, Bootstrap, Estimate
from lit_posttrain.feedback.agreement.report import told_of
from lit_posttrain.feedback.agreement.votes import Floats, Votes, verdicts

_SPREAD = 2.5  # standard deviation of the coefficients' prior, which keeps them finite where a bias explains all
_RESAMPLES = 200
_FOLDS = 5


@dataclass(frozen=True)
class Debiasing:
    """What adds to a judge's log odds, and its labels without position and length. quality: for the response that all
    people prefer. position: for what is shown first; 0 of a judge that saw no order. length: for a response twice as
    long. share: (P,) as `Votes.share`. held_out: (P,) the same, of pairs that people judged fitted without the fifth of
    all prompts that theirs is in."""

    quality: Estimate
    position: Estimate
    length: Estimate
    share: Floats
    held_out: Floats


@dataclass(frozen=True)
class Correction:
    """What debiasing changed in a judge: coefficients as in `Debiasing`, and before and after it how much more probable
    than with people it is that the longer response wins, and the mean squared distance of its labels from the share of
    people's votes. Afterwards is told of `Debiasing.held_out`, as people's votes on a pair would vouch for its
    label."""

    quality: Estimate
    position: Estimate
    length: Estimate
    longer: tuple[Estimate, Estimate]
    brier: tuple[Estimate, Estimate]

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return told_of(self)


def debiased(votes: Votes, seed: int = 0) -> tuple[Votes, dict[str, Debiasing]]:
    """The votes with corrected probabilities of all judges that have pairs of `FEW` prompts in common with people, and
    what was corrected, by judge.

    Raises:
        ImportError: without scikit-learn.
    """
    bootstrap, share, found = Bootstrap(votes.prompt, _RESAMPLES, seed), votes.share.copy(), {}
    for row, one in enumerate(votes.annotators):
        if one.judge and (fitted := _fitted(votes, row, bootstrap)) is not None:
            share[row], found[one.name] = fitted.share, fitted
    return replace(votes, share=share), found


def corrections(before: Votes, fitted: Mapping[str, Debiasing], seed: int = 0) -> dict[str, Correction]:
    """What debiasing changed, by judge."""
    bootstrap, found = Bootstrap(before.prompt, seed=seed), {}
    people, side = before.consensus(before.people), np.sign(before.lengths[:, 0] - before.lengths[:, 1])
    rows = {one.name: row for row, one in enumerate(before.annotators)}
    for name, one in fitted.items():
        off = [share - people for share in (before.share[rows[name]], one.held_out)]
        both = ~np.isnan(off[0])
        longer, brier = (
            [mean(value, both & where, bootstrap) for value in values]
            for values, where in (([side * each for each in off], side != 0), ([each**2 for each in off], both))
        )
        found[name] = Correction(one.quality, one.position, one.length, (longer[0], longer[1]), (brier[0], brier[1]))
    return found


def _fitted(votes: Votes, judge: int, bootstrap: Bootstrap) -> Debiasing | None:
    people = votes.consensus(votes.people)
    length = np.log2((votes.lengths[:, 0] + 1) / (votes.lengths[:, 1] + 1))
    # where no order is known, what it said is seen at no place
    unplaced = np.where(np.isnan(votes.by_order[judge]).all(1), votes.share[judge], np.nan)
    seen, places = np.column_stack([votes.by_order[judge], unplaced]), np.array([1.0, -1.0, 0.0])
    with_people = ~np.isnan(people) & ~np.isnan(votes.share[judge])
    if bootstrap.count(with_people) < FEW:
        return None
    pairs, views = np.nonzero(~np.isnan(seen) & with_people[:, None])
    features = np.stack([2 * people[pairs] - 1, places[views], length[pairs]], axis=1)
    said = seen[pairs, views]
    quality, position, by_length = bootstrap.weighted(
        lambda drawn: _logistic(features, said, drawn[pairs]), with_people
    )
    ties = float((verdicts(people[with_people]) == 0).mean())

    def labels(weight: Floats) -> Floats:
        """(P,) fitted to people's votes with weights (P,) of their pairs."""
        odds = _log_odds(seen, places, length, ties, _logistic(features, said, weight[pairs]))
        slope = _logistic(odds[with_people, None], people[with_people], weight[with_people])[0]
        share = 1 / (1 + np.exp(-max(slope, 0.0) * odds))
        return np.where(np.isnan(votes.share[judge]), np.nan, share)

    every = np.ones(len(people))
    share = labels(every)
    fold = bootstrap.folds(_FOLDS)
    held_out = share.copy()
    for number in range(_FOLDS):
        inside = with_people & (fold == number)
        if inside.any() and (with_people & ~inside).any():
            held_out[inside] = labels(np.where(inside, 0.0, every))[inside]
    return Debiasing(quality, position, by_length, share, held_out)


def _log_odds(seen: Floats, places: Floats, length: Floats, ties: float, coefficients: Floats) -> Floats:
    """(P,) that the first response is better by Bayes' rule, of what was seen (P, 3) at places (3,)."""
    quality, position, by_length = coefficients
    bias = position * places + by_length * length[:, None]
    likelihoods = []
    for level, prior in ((-1, (1 - ties) / 2), (0, ties), (1, (1 - ties) / 2)):
        odds = quality * level + bias
        each = -seen * np.logaddexp(0, -odds) - (1 - seen) * np.logaddexp(0, odds)
        likelihoods.append(np.log(np.maximum(prior, 1e-12)) + np.nansum(each, axis=1))
    posterior = np.exp(likelihoods - np.max(likelihoods, axis=0))
    share = np.clip((posterior[2] + posterior[1] / 2) / posterior.sum(0), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(share / (1 - share)))


def _logistic(features: Floats, said: Floats, weight: Floats) -> Floats:
    """Coefficients of the probabilities `said` (N,) on features (N, F). Each row counts half as it is and half turned
    (-features, 1 - said), which changes no coefficient, and gives both outcomes where all of `said` are 1."""
    from sklearn.linear_model import LogisticRegression  # of the extra `feedback`

    regression = LogisticRegression(C=_SPREAD**2, fit_intercept=False, tol=1e-8, max_iter=1000)
    half = np.concatenate([weight * said, weight * (1 - said)] * 2) / 2
    outcome = np.repeat([1, 0, 0, 1], len(said))
    rows = np.concatenate([features, features, -features, -features])
    regression.fit(rows[half > 0], outcome[half > 0], half[half > 0])
    return np.asarray(regression.coef_[0], float)
