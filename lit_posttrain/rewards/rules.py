"""Rule-based rewards: without a model, and deterministic."""

from __future__ import annotations

import json
import logging
import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.rewards.base import Reward, RewardBatch, Scores
from lit_posttrain.rewards.right_answer import RightAnswer
from lit_posttrain.rewards.time_limit import TooLong, time_limit

_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
_NUMBER = re.compile(r"\s*-?\d[\d,]*(\.\d+)?\s*\Z")  # known to be mathematics without reading it
_LONGEST_S = 5.0  # for reading a right answer
_UNWORKED = re.compile(r"\d\s*(?:[-+*]|\\times|\\cdot)\s*\d")


class ExactMatch(RightAnswer):
    """1 if the response, or what a pattern finds in it, is the right answer, else 0."""

    def __init__(
        self,
        column: str = "answer",
        pattern: str | None = None,
        ignore_case: bool = False,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        """
        Args:
            column: Column with the right answer, or a list of right ones.
            pattern: Regular expression whose last match in the response is compared; if it has groups, the first one.
            ignore_case: Compare without regard to upper and lower case.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: exactmatch.
        """
        super().__init__(column, weight, name)
        self.ignore_case = ignore_case
        self.pattern = None if pattern is None else compiled(pattern, "ExactMatch")

    def resume_options(self) -> dict[str, Any]:
        """Which column, and how it is compared."""
        pattern = None if self.pattern is None else self.pattern.pattern
        return {"column": self.column, "pattern": pattern, "ignore_case": self.ignore_case}

    wants = "a text or a number, or a list of them"

    def is_right_answer(self, right: str) -> bool:
        """Any text is one."""
        return bool(right.strip())

    def equal(self, said: str, right: str) -> bool:
        """True if they are the same texts."""
        if self.pattern is not None:
            found = list(self.pattern.finditer(said))
            if not found:
                return False
            said = found[-1].group(1 if self.pattern.groups else 0) or ""
        sides = [said.strip(), right.strip()]
        if self.ignore_case:
            sides = [side.casefold() for side in sides]
        return sides[0] == sides[1]


class Regex(Reward):
    """1 if a pattern is found in the response, else 0."""

    def __init__(self, pattern: str, whole: bool = False, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            pattern: Regular expression; a dot also matches newlines.
            whole: The pattern must match the whole response.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: regex.
        """
        super().__init__(weight, name)
        self.pattern, self.whole = compiled(pattern, "Regex", re.DOTALL), whole

    def resume_options(self) -> dict[str, Any]:
        """The pattern, and where it must be found."""
        return {"pattern": self.pattern.pattern, "whole": self.whole}

    def score(self, batch: RewardBatch) -> Scores:
        """1 or 0."""
        found = self.pattern.fullmatch if self.whole else self.pattern.search
        return [float(found(said) is not None) for said in batch.responses]


class JsonValid(Reward):
    """1 if the response is JSON, in a code fence or not, and has all `keys`, else 0."""

    def __init__(self, keys: list[str] | None = None, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            keys: Keys that the object must have.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: jsonvalid.
        """
        super().__init__(weight, name)
        self.keys = keys or []

    def resume_options(self) -> dict[str, Any]:
        """The keys."""
        return {"keys": self.keys}

    def score(self, batch: RewardBatch) -> Scores:
        """1 or 0."""
        return [float(self._valid(said)) for said in batch.responses]

    def _valid(self, said: str) -> bool:
        fenced = _FENCED.match(said)
        try:
            found = json.loads(fenced.group(1) if fenced else said)
        except (ValueError, RecursionError):
            return False
        return not self.keys or (isinstance(found, dict) and all(key in found for key in self.keys))


class LengthPenalty(Reward):
    """0 for a response of n tokens up to limit - buffer, then falling to -1 at the limit: -min(max(n - (limit -
    buffer), 0), buffer) / buffer (Yu et al. 2025, DAPO's soft over-long punishment)."""

    shaping = True

    def __init__(self, limit: int, buffer: int, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            limit: Tokens at which the penalty is -1.
            buffer: Tokens before `limit` over which it falls from 0 to -1.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: lengthpenalty.
        """
        super().__init__(weight, name)
        if not 0 < buffer <= limit:
            raise PostTrainError(f"LengthPenalty: buffer is {buffer}; it must be above 0 and at most limit, {limit}")
        self.limit, self.buffer = limit, buffer

    def resume_options(self) -> dict[str, Any]:
        """Where the penalty begins and ends."""
        return {"limit": self.limit, "buffer": self.buffer}

    def score(self, batch: RewardBatch) -> Scores:
        """0 down to -1."""
        free = self.limit - self.buffer
        return [-min(max(len(tokens) - free, 0), self.buffer) / self.buffer for tokens in batch.tokens]


class Repetition(Reward):
    """Minus the share of n-grams of words that the response repeats: 0 without repetition, near -1 in a loop."""

    shaping = True

    def __init__(self, n: int = 3, weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            n: Words per n-gram.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: repetition.
        """
        super().__init__(weight, name)
        if n < 1:
            raise PostTrainError(f"Repetition: n is {n}; it must be at least 1")
        self.n = n

    def resume_options(self) -> dict[str, Any]:
        """How many words are compared."""
        return {"n": self.n}

    def score(self, batch: RewardBatch) -> Scores:
        """0 down to -1."""
        return [self._repeated(said.split()) for said in batch.responses]

    def _repeated(self, words: list[str]) -> float:
        grams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0


class MathAnswer(RightAnswer):
    """1 if the final answer of the response equals the right one as mathematics: 0.5, 1/2 and $\\frac{1}{2}$ are equal
    (math-verify). The final answer is the last formula in dollars or \\boxed{}, else the last number; of a right answer
    with `####` (gsm8k) it is what follows. If the right answer is a number, an unevaluated sum or product does not
    count."""

    def __init__(self, column: str = "answer", weight: float = 1.0, name: str | None = None) -> None:
        """
        Args:
            column: Column with the right answer, or a list of right ones.
            weight: Factor of this reward in the sum of all.
            name: What its metrics are called. Default: mathanswer.
        """
        super().__init__(column, weight, name)

    def resume_options(self) -> dict[str, Any]:
        """The column."""
        return {"column": self.column}

    wants = f"a number or a formula that math-verify reads in {_LONGEST_S:g} s, or a list of them"

    def is_right_answer(self, right: str) -> bool:
        """True if math-verify can read it."""
        return bool(_NUMBER.match(right.rsplit("####", 1)[-1]) or _parsed(right))

    def equal(self, said: str, right: str) -> bool:
        """True if they are equal as mathematics."""
        parse, verify = _math_verify()
        gold, found = list(_parsed(right)), parse(said, parsing_timeout=None)
        # "What is 2 + 2" is no answer, though math-verify finds it equal to 4
        asks = getattr(gold[0], "is_number", False) and found and _UNWORKED.search(found[-1].rsplit("=", 1)[-1])
        if asks and not _UNWORKED.search(right):
            return False
        return bool(verify(gold, found, timeout_seconds=None))


@lru_cache(maxsize=4096)  # every response to a prompt is compared with the same one
def _parsed(right: str) -> tuple[Any, ...]:
    """A right answer as math-verify parses it; empty if it finds no mathematics, or takes too long."""
    parse, _ = _math_verify()
    try:
        with time_limit(_LONGEST_S):
            return tuple(parse(_as_formula(right.rsplit("####", 1)[-1].strip()), parsing_timeout=None))
    except TooLong:
        return ()


def _as_formula(right: str) -> str:
    """The answer in dollars if it is LaTeX. From a text without dollars math-verify takes only a number, such as the 2
    of 2\\sqrt{3}."""
    try:
        return f"{Decimal(right):f}"  # math-verify reads 1e-3 as 1
    except InvalidOperation:
        bare = ("\\" in right or "^" in right) and "$" not in right and "\\boxed" not in right
        return f"${right}$" if bare else right


def _math_verify() -> tuple[Any, Any]:
    # its own timeouts are alarms, of which a thread has only one, and are off; it warns of that
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    from math_verify import parse, verify

    return parse, verify


def compiled(pattern: str, who: str, flags: int = 0) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        PostTrainError: if it is none.
    """
    try:
        return re.compile(pattern, flags)
    except re.error as problem:
        raise PostTrainError(f"{who}: pattern {pattern!r} is no regular expression ({problem}); mend it") from problem
