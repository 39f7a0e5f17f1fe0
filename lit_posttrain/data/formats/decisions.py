"""The decision in a row of data."""

from __future__ import annotations

from dataclasses import fields

from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.rows.bad_rows import NothingToLearn
from lit_posttrain.data.rows.row import Row

_FIELDS = ("feedback", *(one.name for one in fields(Decision)))
_NO_VERDICT = {
    "skipped": "skipped by the annotator",
    "unparsable": "an unparsable answer of the judge",
    "failed": "a failed call of the judge",
    "undone": "undone by the annotator",
}


def decision_of(row: Row, verdict: bool = True) -> Decision:
    """The decision in a row, whose columns count as read. verdict: refuse one without a verdict.

    Raises:
        BadRow: the row is no decision.
        NothingToLearn: there is no verdict.
    """
    decision = Decision.of({name: row[name] for name in _FIELDS if row.peek(name) is not None})
    if verdict and decision.outcome != "verdict":
        reason = _NO_VERDICT[decision.outcome]
        raise NothingToLearn(reason, f"{reason}: there is nothing to learn")
    return decision
