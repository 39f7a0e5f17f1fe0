"""What moves an annotator's verdicts beside the quality of responses: their place, their length, who wrote them.

A tie is half a win. `people` is the mean vote of all people but the annotator, on the pairs that both have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lit_posttrain.feedback.agreement.intervals import Bootstrap, Estimate
from lit_posttrain.feedback.agreement.statistics import ratio
from lit_posttrain.feedback.agreement.votes import Bools, Floats, Votes, short_name, verdicts


@dataclass(frozen=True)
class Bias:
    """The biases of one annotator; estimates of nothing where the votes do not show them.

    swap_consistency: share of pairs seen in both orders with the same verdict in both. first_position: how often the
    response that was shown first wins, one half without bias. Of the pairs seen in both orders, as three estimates
    (where the record's first response was shown first, where it was shown second, both orders averaged): wins, how
    often the record's first response wins, and agreement with people, ties left out; wins_people: how often it wins
    with people. What differs between the first two is position bias.

    longer: how often the longer response wins; longer_people: with people, on the same pairs; longer_excess: their
    difference. own: how often a judge's model wins over others; own_people, own_excess: as for length.
    """

    swap_consistency: Estimate
    first_position: Estimate
    wins: tuple[Estimate, Estimate, Estimate]
    wins_people: Estimate
    agreement: tuple[Estimate, Estimate, Estimate]
    longer: Estimate
    longer_people: Estimate
    longer_excess: Estimate
    own: Estimate
    own_people: Estimate
    own_excess: Estimate


def bias_of(votes: Votes, annotator: int, bootstrap: Bootstrap) -> Bias:
    """The biases of one annotator, by number."""
    said = won(votes.share[annotator])
    people = won(votes.consensus(votes.people[votes.people != annotator]))
    seen = won(votes.by_order[annotator])
    # the record's second response was shown first where its first one was shown second
    for_first = np.stack([seen[:, 0], 1 - seen[:, 1]], axis=1)
    shown = ~np.isnan(for_first)
    position = np.stack([np.where(shown, for_first, 0).sum(1), shown.sum(1)], axis=1)
    both = shown[:, 0] & shown[:, 1]
    views = [np.where(both, one, np.nan) for one in (seen[:, 0], seen[:, 1], said)]
    length = np.sign(votes.lengths[:, 0] - votes.lengths[:, 1])
    own = _own(votes, annotator)
    return Bias(
        mean((seen[:, 0] == seen[:, 1]).astype(float), both, bootstrap),
        bootstrap.estimate(position, ratio, int(shown.sum())),
        _three(mean(one, both, bootstrap) for one in views),
        mean(people, both & ~np.isnan(people), bootstrap),
        _three(agrees(one, people, bootstrap) for one in views),
        *_sided(said, people, length, bootstrap),
        *_sided(said, people, own, bootstrap),
    )


def _three(estimates: Iterable[Estimate]) -> tuple[Estimate, Estimate, Estimate]:
    one, other, both = estimates
    return one, other, both


def won(share: Floats) -> Floats:
    """1 where the first response wins, one half for a tie, 0 where it loses, NaN for no vote."""
    return (verdicts(share) + 1) / 2


def mean(values: Floats, where: Bools, bootstrap: Bootstrap) -> Estimate:
    """The mean of values (P,) of some pairs."""
    parts = np.stack([np.where(where, values, 0.0), where.astype(float)], axis=1)
    return bootstrap.estimate(parts, ratio, int(where.sum()))


def agrees(one: Floats, other: Floats, bootstrap: Bootstrap) -> Estimate:
    """The share of equal wins (P,) where neither is a tie."""
    decided = ~np.isnan(one) & ~np.isnan(other) & (one != 0.5) & (other != 0.5)
    return mean((one == other).astype(float), decided, bootstrap)


def _sided(said: Floats, people: Floats, side: Floats, bootstrap: Bootstrap) -> tuple[Estimate, Estimate, Estimate]:
    """How often the response of a side wins, with people, and the difference. side: (P,) 1 for the first, -1 for the
    second, 0 for neither."""
    wins, theirs = (np.where(side > 0, one, 1 - one) for one in (said, people))
    there = (side != 0) & ~np.isnan(said)
    both = there & ~np.isnan(people)
    return mean(wins, there, bootstrap), mean(theirs, both, bootstrap), mean(wins - theirs, both, bootstrap)


def _own(votes: Votes, annotator: int) -> Floats:
    """(P,) 1 where the judge's model wrote the first response alone, -1 the second one alone, 0 elsewhere."""
    model = votes.annotators[annotator].model or ""
    names = [[str(one.get("model") or "") for one in (p.first, p.second)] for p in votes.pairs]
    wrote = [[bool(model) and _same_model(name, model) for name in both] for both in names]
    table = np.array(wrote, float).reshape(-1, 2)
    return np.asarray(table[:, 0] - table[:, 1])


def _same_model(one: str, other: str) -> bool:
    """True for names of one model: equal but for case and owner. Two paths of folders are compared as a whole, as the
    last folder of many runs has the same name."""
    one, other = one.lower().rstrip("/"), other.lower().rstrip("/")
    if min(one.count("/"), other.count("/")) > 1:
        return one == other
    return short_name(one) == short_name(other)
