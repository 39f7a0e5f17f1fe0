"""Everything that is reported of a set of votes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.feedback.agreement import statistics
from lit_posttrain.feedback.agreement.bias import Bias, bias_of
from lit_posttrain.feedback.agreement.intervals import Bootstrap, Estimate
from lit_posttrain.feedback.agreement.votes import Floats, Ints, Votes, votes_of

if TYPE_CHECKING:
    from lit_posttrain.feedback.agreement.calibration import Calibration


@dataclass(frozen=True)
class Between:
    """Two annotators on the pairs that both have. agreement: share of equal verdicts, ties among them; decided: where
    neither sees a tie; kappa: Cohen's, of first, tie and second."""

    one: str
    other: str
    agreement: Estimate
    decided: Estimate
    kappa: Estimate


@dataclass(frozen=True)
class Group:
    """Several annotators together. agreement, decided: of two drawn votes on a pair, as in `Between`. alpha:
    Krippendorff's, ordinal. fleiss: Fleiss' kappa, of the pairs that have `raters` votes, which most have."""

    agreement: Estimate
    decided: Estimate
    alpha: Estimate
    fleiss: Estimate
    raters: int


@dataclass(frozen=True)
class Report:
    """What a set of votes says of its annotators. between: of every two annotators. people: None below two of them, as
    are judges. with_people: by judge, its agreement with the single people, as `people` has theirs with each other.
    criteria: Krippendorff's alpha of people's ratings, by
    criterion. bias: by annotator. calibration: by judge, see `calibration_of`."""

    votes: Votes
    between: list[Between]
    people: Group | None
    judges: Group | None
    with_people: dict[str, tuple[Estimate, Estimate]]
    criteria: dict[str, Estimate]
    bias: dict[str, Bias]
    calibration: dict[str, Calibration]

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        votes = self.votes
        said = votes.verdicts
        names = {"first": 1.0, "tie": 0.0, "second": -1.0}
        return {
            "pairs": len(votes.pairs),
            "prompts": len(np.unique(votes.prompt)),
            "annotators": [
                {
                    "name": one.name,
                    "judge": one.judge,
                    "model": one.model,
                    "votes": int((~np.isnan(said[row])).sum()),
                    **{name: int((said[row] == code).sum()) for name, code in names.items()},
                    "decisions": dict(one.outcomes),
                    "replaced": one.replaced,
                }
                for row, one in enumerate(votes.annotators)
            ],
            "between": [told_of(one) for one in self.between],
            "people": self.people and told_of(self.people),
            "judges": self.judges and told_of(self.judges),
            "with_people": {
                name: {"agreement": a.told(), "decided": d.told()} for name, (a, d) in self.with_people.items()
            },
            "criteria": {name: one.told() for name, one in self.criteria.items()},
            "bias": {name: told_of(one) for name, one in self.bias.items()},
            "calibration": {name: told_of(one) for name, one in self.calibration.items()},
        }


def summary(decisions: Iterable[Decision], resamples: int = 1000) -> dict[str, Any]:
    """The report on decisions as plain values, such as a page shows; `resamples` as in `report_of`."""
    return report_of(votes_of(decisions), resamples).told()


def report_of(votes: Votes, resamples: int = 1000, seed: int = 0) -> Report:
    """The report on votes; intervals are of 95 %, from so many resamples."""
    bootstrap = Bootstrap(votes.prompt, resamples, seed)
    judges = [row for row, one in enumerate(votes.annotators) if one.judge]
    said = votes.verdicts
    voted = ~np.isnan(said)
    two = ((a, b) for a, b in combinations(range(len(said)), 2) if (voted[a] & voted[b]).any())
    return Report(
        votes,
        [_between(votes, said, a, b, bootstrap) for a, b in two],
        _group(votes, votes.people, bootstrap),
        _group(votes, np.array(judges, np.int64), bootstrap),
        {votes.annotators[row].name: _with_people(votes, row, bootstrap) for row in judges if len(votes.people)},
        _criteria(votes, resamples, seed),
        {one.name: bias_of(votes, row, bootstrap) for row, one in enumerate(votes.annotators)},
        _calibrations(votes, judges, bootstrap) if len(votes.people) else {},
    )


def _criteria(votes: Votes, resamples: int, seed: int) -> dict[str, Estimate]:
    found = {}
    for name, one in votes.ratings.items():
        parts = statistics.interval_parts(one.scores[votes.people])
        if twice := int((parts[:, 0] > 0).sum()):
            bootstrap = Bootstrap(one.prompt, resamples, seed)
            found[name] = bootstrap.estimate(parts, statistics.interval_alpha, twice)
    return found


def _calibrations(votes: Votes, judges: list[int], bootstrap: Bootstrap) -> dict[str, Calibration]:
    from lit_posttrain.feedback.agreement.calibration import calibration_of  # loads torch, which people do not need

    found = ((votes.annotators[row].name, calibration_of(votes, row, bootstrap)) for row in judges)
    return {name: one for name, one in found if one is not None}


def _between(votes: Votes, said: Floats, one: int, other: int, bootstrap: Bootstrap) -> Between:
    matrix = statistics.both_ways(statistics.confusion(said[one], said[other]))
    n, decided = int(matrix.sum() / 2), int(matrix[:, ::2, ::2].sum() / 2)
    return Between(
        votes.annotators[one].name,
        votes.annotators[other].name,
        bootstrap.estimate(matrix, statistics.agreement, n),
        bootstrap.estimate(matrix, statistics.decided_agreement, decided),
        bootstrap.estimate(matrix, statistics.cohen, n),
    )


def _group(votes: Votes, rows: Ints, bootstrap: Bootstrap) -> Group | None:
    count = statistics.counts(votes.verdicts[rows])
    total = count.sum(1)
    if not (total > 1).any():
        return None
    raters = Counter(total[total > 1].astype(int).tolist()).most_common(1)[0][0]
    enough, full = total > 1, total == raters
    fleiss = np.zeros((len(count), 5))
    fleiss[full] = statistics.fleiss_parts(count[full])
    coincidences = statistics.both_ways(statistics.coincidences(count))
    decided = count[:, ::2]
    return Group(
        _drawn(count, bootstrap),
        _drawn(decided, bootstrap),
        bootstrap.estimate(coincidences, statistics.alpha, int(enough.sum())),
        bootstrap.estimate(fleiss, statistics.fleiss, int(full.sum())),
        raters,
    )


def _drawn(count: Floats, bootstrap: Bootstrap) -> Estimate:
    """How often two votes on a pair are equal, of counts (P, categories)."""
    total = count.sum(1)
    parts = np.stack([(count * (count - 1)).sum(1), total * (total - 1)], axis=1) / 2
    return bootstrap.estimate(parts, statistics.ratio, int((total > 1).sum()))


def _with_people(votes: Votes, judge: int, bootstrap: Bootstrap) -> tuple[Estimate, Estimate]:
    """How often a judge's vote equals that of a single person, ties among them and left out."""
    said, people = (statistics.counts(votes.verdicts[rows]) for rows in ([judge], votes.people))
    made = []
    for ours, theirs in ((said, people), (said[:, ::2], people[:, ::2])):
        parts = np.stack([(ours * theirs).sum(1), ours.sum(1) * theirs.sum(1)], axis=1)
        made.append(bootstrap.estimate(parts, statistics.ratio, int((parts[:, 1] > 0).sum())))
    return made[0], made[1]


def told_of(one: Any) -> dict[str, Any]:
    """A dataclass of estimates as JSON has it."""
    return {field.name: _plain(getattr(one, field.name)) for field in fields(one)}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.told() if value.n else None
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def as_json(told: dict[str, Any]) -> str:
    """A report's values as text."""
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"
