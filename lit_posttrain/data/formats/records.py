"""Decisions of people and judges (data/feedback/record.py) as comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.formats.comparison import Candidate, Comparison, equal_responses
from lit_posttrain.data.formats.decisions import decision_of
from lit_posttrain.data.formats.ranking_readers import ranked
from lit_posttrain.data.rows.bad_rows import NothingToLearn
from lit_posttrain.data.rows.message_checks import same
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import conversation


def recorded(
    labelled: bool, annotators: Literal["soft", "majority"], singles: bool = False
) -> Callable[[Row], Comparison]:
    """A reader of decisions. Ranked responses keep their ranks, and unranked ones are left out. Of two responses with a
    probability the better one is first, with a soft label, which a tie of two is too. With fewer than two ranks those
    that are not rejected are the better ones. Where rejections are known they are the labels `good`. Decisions without
    a verdict have nothing to learn.

    labelled: False keeps all responses in their order, whatever was decided. annotators: `majority` takes the likelier
    response as certain. singles: of a decision that rejects responses, all responses with `good` and without ranks.
    """
    unlabelled = ranked({"prompt": "prompt", "responses": "responses", "extra": [], "labelled": False})

    def read(row: Row) -> Comparison:
        decision = decision_of(row, verdict=labelled)
        if not decision.responses:
            if labelled:
                raise NothingToLearn(
                    "nothing to compare", "a reply that a person wrote, beside no other: no preference"
                )
            return Comparison(conversation(row["prompt"], "prompt", row.notes, "user"))
        unused = list(row.unused)
        found = unlabelled(row)
        row.unused = unused  # `responses[].model` and the like say where a response comes from
        if labelled:
            _mark_good(decision, found.candidates)
        if labelled and not (singles and decision.rejected is not None):
            found.candidates = _labelled(decision, found.candidates, annotators)
        return found

    return read


def _mark_good(decision: Decision, candidates: Sequence[Candidate]) -> None:
    if decision.rejected is not None:
        for candidate, rejected in zip(candidates, decision.rejected, strict=True):
            candidate.labels["good"] = float(not rejected)


def _labelled(
    decision: Decision, candidates: Sequence[Candidate], annotators: Literal["soft", "majority"]
) -> list[Candidate]:
    if len(candidates) == 2 and same(candidates[0].messages, candidates[1].messages):
        raise equal_responses()
    if decision.probability is not None:
        return _soft(decision.probability, candidates, annotators)
    ranks: Sequence[int | None] = decision.ranks or []
    if decision.rejected is not None and sum(rank is not None for rank in ranks) < 2:
        ranks = [int(rejected) for rejected in decision.rejected or []]
    kept = [
        (c, rank) for c, rank in zip(candidates, ranks or [None] * len(candidates), strict=True) if rank is not None
    ]
    if len(kept) < 2:
        raise NothingToLearn("fewer than two ranked", "fewer than two responses have a rank: no preference")
    order = sorted({rank for _, rank in kept})
    if len(order) == 1 and len(candidates) == 2:
        return _soft(0.5, candidates, annotators)
    if len(order) == 1:
        raise NothingToLearn("all tied", "every ranked response has the same rank: no preference")
    for candidate, rank in kept:
        candidate.labels["rank"] = float(order.index(rank))
    return [candidate for candidate, _ in kept]


def _soft(share: float, candidates: Sequence[Candidate], annotators: str) -> list[Candidate]:
    if annotators == "majority":
        if share == 0.5:
            raise NothingToLearn("no majority", "both responses are as likely: no preference")
        share = float(share > 0.5)
    first, second = candidates
    if share < 0.5:
        first, second, share = second, first, 1 - share
    first.labels["rank"] = 0.0
    second.labels |= {"rank": 1.0, **({"flip_prob": 1 - share} if share < 1 else {})}
    return [first, second]
