"""What every judge is: an item in, an opinion out, and the record that is kept of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.feedback.record import Decision, now


@dataclass(frozen=True)
class Opinion:
    """What a judge said of one item with K responses. Only a verdict has scores and ranks; what is unparsable or failed
    has no score, which is not the score 0.

    scores: (K,) higher is better, None for no score: the expected score (`score`), the weighted mean of the criteria
    from 0 to 1 (`rubric`), or the share of the other responses that it was preferred to (`pairwise`, `verdict`,
    `listwise`). ranks: (K,) 0 is the best, equal ranks are ties. probability: of two responses that were compared, that
    the first one is better. criteria: (K,) scores by criterion. reason: in the judge's words. error: why there is no
    verdict. calls: how often its model was asked, repeated questions included.

    details: what is kept in the record's `judge` beside the judge's identity. Of a comparison of two responses,
    `orders`: [p, q], the probability that the first response of the data is better, where it was shown first (p) and
    where it was shown second (q); of more responses `pairs`: [i, j, p, q] for each two of them. None where a reply was
    unparsable. A judge that is consistent has p = q; one that always prefers what it sees first has p = 1 and q = 0.
    """

    outcome: Literal["verdict", "unparsable", "failed"]
    scores: list[float | None]
    ranks: list[int | None] | None = None
    probability: float | None = None
    criteria: dict[str, list[float | None]] | None = None
    reason: str = ""
    error: str = ""
    calls: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """Judges items. judges/kinds/ has those of the project."""

    @property
    def name(self) -> str:
        """What it is called in records, among annotators."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its opinions depend on beside the item: model, kind, version, prompt hash and options, as plain values.
        `criteria_column` is there if a column of the item decides too. Holds no key or password."""
        ...

    async def opinion(self, item: Item) -> Opinion:
        """The opinion on one item. May be awaited for many at once. A call that fails makes the outcome `failed`; what
        must stop the run, such as a spent budget, is raised.

        Raises:
            BadRow: the item cannot be judged: it has too few responses for a comparison, or bad criteria.
        """
        ...

    async def close(self) -> None:
        """End for good."""
        ...


def decision_id(item: Item, judge: Judge, repetition: int = 0) -> str:
    """The id of a judge's decision, known before it is asked: a rerun finds it among those that are there."""
    told = [item.id, dict(judge.identity), repetition]
    if column := judge.identity.get("criteria_column"):
        told.append(item.columns.get(column))
    return hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def decision(item: Item, judge: Judge, opinion: Opinion, repetition: int = 0, seconds: float | None = None) -> Decision:
    """The record of an opinion."""
    kept: dict[str, Any] = {**judge.identity, **opinion.details, "calls": opinion.calls}
    if opinion.outcome == "verdict":
        kept["scores"] = opinion.scores
    return Decision(
        id=decision_id(item, judge, repetition),
        item=item.id,
        annotator=judge.name,
        prompt=item.prompt,
        responses=item.responses,
        outcome=opinion.outcome,
        ranks=opinion.ranks,
        probability=opinion.probability,
        criteria=opinion.criteria,
        judge=kept,
        reason=opinion.reason,
        error=opinion.error,
        seconds=seconds,
        time=now(),
        source=item.source,
        columns=item.columns,
    )
