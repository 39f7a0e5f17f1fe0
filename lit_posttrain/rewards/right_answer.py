"""Base class of rewards that compare with a right answer, which checks the values of its column."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lit_posttrain.rewards.base import Reward, RewardBatch, Scores


class RightAnswer(Reward):
    """1 if a response is the right answer, or one of a list of them, else 0. wants: what a right answer must be, for
    errors."""

    wants: ClassVar[str]

    def __init__(self, column: str, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            column: Column with the right answer, or a list of them.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called.
        """
        super().__init__(weight, name)
        self.needs = (column,)
        self.column = column

    def score(self, batch: RewardBatch) -> Scores:
        """None for a row without a right answer, an exception for an unusable one."""
        rights = batch.columns[self.column]
        return [self._scored(said, right) for said, right in zip(batch.responses, rights, strict=True)]

    def unusable(self, row: Mapping[str, Any]) -> str:
        """Why the right answer of a row cannot be compared with; empty if it can, or if there is none."""
        right = row.get(self.column)
        given = right if isinstance(right, (list, tuple)) else [right]
        if right is None:
            return ""
        if given and all(isinstance(one, (str, int, float)) and self.is_right_answer(str(one)) for one in given):
            return ""
        shown = repr(right)
        return f"`{self.column}` is {shown if len(shown) <= 60 else shown[:57] + '...'}, which is not {self.wants}"

    @abstractmethod
    def is_right_answer(self, right: str) -> bool:
        """True if a text can be a right answer."""

    @abstractmethod
    def equal(self, said: str, right: str) -> bool:
        """True if a response is a right answer."""

    def _scored(self, said: str, right: Any) -> float | Exception | None:
        if right is None:
            return None
        if problem := self.unusable({self.column: right}):
            return ValueError(problem)
        return float(
            any(self.equal(said, str(one)) for one in (right if isinstance(right, (list, tuple)) else [right]))
        )
