"""Who preferred which of two responses: what the values of a file's label columns mean.

Public sets contradict each other: 1 is the first response in one and the second in another, 0 a tie or a response. A
file that does not say which is meant is refused, whatever becomes of its bad rows: read the wrong way, a model learns
the opposite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal

from lit_posttrain.data.rows.bad_rows import BadRow, Misread, NothingToLearn
from lit_posttrain.data.rows.values import finite_number

Winner = Literal["first", "second", "tie", "neither"]  # neither: a tie of two bad responses

_USUAL: dict[str, Winner] = {"1": "first", "2": "second", "0": "tie"}
_SHARE = {"first": 1.0, "tie": 0.5, "neither": 0.5, "second": 0.0}
_TRUTH = {"true": "1", "false": "0"}
_REMEDY = "--data.label_values says what they mean, such as '{1: first, 0: second}' or '{-1: first, 0: tie, 1: second}'"


class Votes:
    """The labels of one file. columns: their names. values: which response each value prefers, given by the user.
    published: the same, known for the data set that the file seems to be. Without either, 1 is the first response, 2
    the second and 0 a tie."""

    def __init__(
        self,
        columns: Sequence[str],
        values: Mapping[str, Winner] | None = None,
        published: Mapping[str, Winner] | None = None,
    ) -> None:
        self.columns = list(columns)
        self._given, self._published = values is not None, values is None and published is not None
        self._values = {_spelled(value): winner for value, winner in (values or published or _USUAL).items()}
        self._seen: set[str] = set()

    def share_for_first(self, votes: Sequence[Any]) -> float:
        """The share of a row's votes for the first response; a tie is half a vote. Raises what `winners` does."""
        points = [_SHARE[winner] for winner in self.winners(votes)]
        return sum(points) / len(points)

    def neither(self, votes: Sequence[Any]) -> bool:
        """True if every vote of a row says that both responses are bad."""
        return set(self.winners(votes)) == {"neither"}

    def winners(self, votes: Sequence[Any]) -> list[Winner]:
        """Which response each vote of a row prefers.

        Raises:
            BadRow: a vote is missing, or not among the values that the user gave.
            NothingToLearn: a vote is missing in a published data set, where nobody can fill it in.
            Misread: a vote is not among the usual values, or those of the data set that the file seems to be.
        """
        winners = []
        for column, vote in zip(self.columns, votes, strict=True):
            value = _spelled(vote)
            if value in ("", "none"):
                if self._published:
                    raise NothingToLearn("no label", f"`{column}` is empty: no response is preferred; remove the row")
                raise BadRow("label", f"`{column}` is empty; fill or remove the row")
            if value in _TRUTH and set(self._values) == {"0", "1"}:  # where only these two exist, they are yes and no
                value = _TRUTH[value]
            if value not in self._values:
                self._refuse(column, vote)
            self._seen.add(value)
            winners.append(self._values[value])
        return winners

    def _refuse(self, column: str, vote: object) -> None:
        if self._given:
            raise BadRow("label", f"`{column}` is {vote!r}, which is not in --data.label_values; add it")
        if self._published:
            known = ", ".join(self._values)
            raise Misread("label", f"`{column}` is {vote!r}; known labels of this column are {known}: {_REMEDY}")
        raise Misread(
            "label",
            f"`{column}` is {vote!r}; labels are 1 (the first response is better), 2 (the second) or 0 (a tie): "
            f"{_REMEDY}",
        )

    def alone(self, column: str) -> Votes:
        """The labels of one of the columns, read in the same way. Its values count for the `doubt` of all."""
        found = copy(self)
        found.columns = [column]
        return found

    @property
    def doubt(self) -> str:
        """Evidence against the usual meaning after all rows were read; empty for none."""
        names = ", ".join(f"`{column}`" for column in self.columns)
        if self._published:
            return self._unsigned(names)
        if self._given or "0" not in self._seen or "2" in self._seen:
            return ""
        return (
            f"{names}: no label is 2, and some are 0: 0 may be a tie, the first response or the second one; say which "
            "with --data.label_values '{1: first, 0: tie}', '{1: first, 0: second}' or '{0: first, 1: second}'"
        )

    def _unsigned(self, names: str) -> str:
        """Evidence against labels that are below 0 for the first response and above it for the second; empty for
        none."""
        if "-1" not in self._values or self._seen <= {"0"} or any(value.startswith("-") for value in self._seen):
            return ""
        known = ", ".join(f"{value}: {winner}" for value, winner in self._values.items())
        return (
            f"{names}: no label is below 0, which would prefer the first response: they may say by how much a response "
            "is better and not which one; name the column that says which with --data.columns.labels '[NAME]', or pass "
            f"--data.label_values '{{{known}}}' if all of these rows prefer the second one"
        )


def whole_number(value: object) -> int | None:
    """A whole number, also written as 1.0 or as text; None for anything else."""
    number = finite_number(value)
    return int(number) if number is not None and number.is_integer() else None


def _spelled(value: object) -> str:
    number = whole_number(value)
    return str(value).strip().lower() if number is None else str(number)
