"""The votes of all annotators on pairs of responses, as arrays.

A ranking of K responses votes on each of its pairs. Votes meet by what was judged, prompt and two texts, whatever the
file, the order of the responses or what else the item had.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_posttrain.data.feedback.record import Decision, Prompt
from lit_posttrain.errors import PostTrainError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
FIRST, TIE, SECOND = 1.0, 0.0, -1.0  # verdicts
# of a judge, by which two of one name are told apart
_IDENTITY = ("model", "kind", "version", "prompt_hash", "disagreement", "principles_drawn", "seed", "temperature")
_EVEN = 1e-6  # a probability this near to one half is a tie


@dataclass
class Annotator:
    """Who voted. model: of a judge, None for a person. outcomes: number of decisions by outcome. replaced: earlier
    decisions on items that were decided again, and earlier votes on pairs that another item has too."""

    name: str
    judge: bool
    model: str | None
    outcomes: Counter[str]
    replaced: int = 0


@dataclass(frozen=True)
class Pair:
    """Two responses to a prompt, in the order of the record that had them first. columns: of the item's row. A model
    that wrote a response, and columns, come from the first record that has them."""

    prompt: Prompt
    first: Mapping[str, Any]
    second: Mapping[str, Any]
    columns: Mapping[str, Any]

    def completed(self, first: Mapping[str, Any], second: Mapping[str, Any], columns: Mapping[str, Any]) -> Pair:
        """With what another record of the pair knows besides."""
        sides = [
            {**one, "model": other["model"]} if other.get("model") and not one.get("model") else one
            for one, other in ((self.first, first), (self.second, second))
        ]
        return Pair(self.prompt, sides[0], sides[1], self.columns or columns)


@dataclass(frozen=True)
class Ratings:
    """Scores on one criterion. scores: (A, R) of R responses, NaN for none. prompt: (R,) number of their prompt."""

    scores: Floats
    prompt: Ints


@dataclass(frozen=True)
class Votes:
    """The votes of A annotators on P pairs of responses to C prompts.

    share: (A, P) 1 if the first response is better, 0 if the second is, 0.5 for a tie; a judge's probability lies
    between them; NaN without a vote. by_order: (A, P, 2) the same when the first response was shown first, and when it
    was shown second. prompt: (P,) number of the pair's prompt.
    """

    annotators: list[Annotator]
    pairs: list[Pair]
    share: Floats
    by_order: Floats
    prompt: Ints
    ratings: dict[str, Ratings]

    @property
    def verdicts(self) -> Floats:
        """(A, P) 1 first, 0 tie, -1 second, NaN no vote."""
        return verdicts(self.share)

    @property
    def people(self) -> Ints:
        """Numbers of the annotators that are people."""
        return np.array([a for a, one in enumerate(self.annotators) if not one.judge], dtype=np.int64)

    @property
    def lengths(self) -> Floats:
        """(P, 2) characters of both responses."""
        found = [[len(_text(one)) for one in (pair.first, pair.second)] for pair in self.pairs]
        return np.array(found, float).reshape(-1, 2)

    def consensus(self, of: Ints) -> Floats:
        """(P,) mean share of some annotators, NaN where none of them voted."""
        given = self.share[of]
        count = (~np.isnan(given)).sum(0)
        return np.where(count > 0, np.nansum(given, 0) / np.maximum(count, 1), np.nan)


def verdicts(share: Floats) -> Floats:
    """The verdict of a share: 1 above one half, -1 below, 0 for one half, NaN for NaN."""
    return np.where(np.abs(share - 0.5) < _EVEN, TIE, np.sign(share - 0.5))


def votes_of(decisions: Iterable[Decision]) -> Votes:
    """The votes of decisions. Of several votes of one annotator on one pair the last one counts: the latest by
    their time, or without times the one that comes last."""
    annotators: dict[tuple[str, str], Annotator] = {}
    last: dict[tuple[tuple[str, str], str], Decision] = {}
    for one in decisions:
        who = (one.annotator, _judge_key(one))
        if who not in annotators:
            model = str((one.judge or {}).get("model") or "")
            name = one.annotator.replace(model, short_name(model)) if model else one.annotator
            annotators[who] = Annotator(name, one.judge is not None, model or None, Counter())
        annotators[who].outcomes[one.outcome] += 1
        if one.outcome == "verdict":
            before = last.get((who, one.item))
            annotators[who].replaced += before is not None
            if before is None or not _earlier(one.time, before.time):
                last[who, one.item] = one
    _tell_apart(annotators)
    pairs: dict[tuple[str, str, str], int] = {}
    shown: list[Pair] = []
    prompts: dict[str, int] = {}
    prompt_of: list[int] = []
    cells: dict[tuple[int, int], tuple[str, tuple[float, float, float]]] = {}
    rows = {who: row for row, who in enumerate(annotators)}
    for (who, _), one in last.items():
        for i, j, asked, first, second, vote in _voted(one):
            column = pairs.get((asked, first, second))
            if column is None and (turned := pairs.get((asked, second, first))) is not None:
                column, vote, i, j = turned, (1 - vote[0], 1 - vote[2], 1 - vote[1]), j, i
            sides = one.responses[i], one.responses[j]
            if column is None:
                column = pairs[asked, first, second] = len(shown)
                shown.append(Pair(one.prompt, *sides, one.columns))
                prompt_of.append(prompts.setdefault(asked, len(prompts)))
            shown[column] = shown[column].completed(*sides, one.columns)
            cell = rows[who], column
            annotators[who].replaced += cell in cells
            if cell not in cells or not _earlier(one.time, cells[cell][0]):
                cells[cell] = one.time, vote
    table = np.full((len(annotators), len(shown), 3), np.nan)
    for (row, column), (_, vote) in cells.items():
        table[row, column] = vote
    ratings = _ratings(len(rows), ((rows[who], one) for (who, _), one in last.items()))
    prompt = np.array(prompt_of, np.int64)
    return Votes(list(annotators.values()), shown, table[..., 0], table[..., 1:], prompt, ratings)


def _earlier(time: str, other: str) -> bool:
    """True if both are times, and the first one is earlier."""
    return bool(time and other) and time < other


def _ratings(count: int, said: Iterable[tuple[int, Decision]]) -> dict[str, Ratings]:
    """Ratings of decisions, each with the number of its annotator, of whom there are `count`."""
    cells: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for row, one in said:
        asked, responses = _hashes(one)
        for name, scores in (one.criteria or {}).items():
            for response, score in zip(responses, scores, strict=True):
                if score is not None:
                    cells.setdefault(name, {}).setdefault((asked, response), {})[row] = float(score)
    found = {}
    for name, rated in cells.items():
        table, prompts = np.full((count, len(rated)), np.nan), dict[str, int]()
        for column, given in enumerate(rated.values()):
            table[list(given), column] = list(given.values())
        numbers = [prompts.setdefault(asked, len(prompts)) for asked, _ in rated]
        found[name] = Ratings(table, np.array(numbers, np.int64))
    return found


def short_name(model: str) -> str:
    """A model's name without its folder or owner."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def pairs_of(decisions: Iterable[Decision]) -> set[tuple[str, frozenset[str]]]:
    """The pairs of responses that decisions vote on, as hashes of prompt and texts."""
    return {(asked, frozenset((one, other))) for said in decisions for _, _, asked, one, other, _ in _voted(said)}


def _voted(one: Decision) -> Iterator[tuple[int, int, str, str, str, tuple[float, float, float]]]:
    """The votes of a decision: numbers of both responses, hashes of the prompt and of both, and the vote."""
    asked, said = _hashes(one)
    for i, j in combinations(range(len(said)), 2):
        vote = _vote(one, i, j)
        if vote is not None and said[i] != said[j]:
            yield i, j, asked, said[i], said[j], vote


def _hashes(one: Decision) -> tuple[str, list[str]]:
    """Of a decision's prompt and responses."""
    asked = one.prompt if isinstance(one.prompt, list) else [{"role": "user", "content": one.prompt}]
    return _hash(asked), [_hash([_text(said), said.get("reasoning_content") or ""]) for said in one.responses]


def _vote(one: Decision, i: int, j: int) -> tuple[float, float, float] | None:
    """Share of response i against j: in all, when i was shown first, when j was; NaN for what was not seen. None
    without a vote."""
    share = _share(one, i, j)
    if share is None:
        return None
    if (seen := _in_both_orders(one).get((i, j))) is not None:
        return share, *seen
    if one.order is not None:
        return (share, share, np.nan) if one.order.index(i) < one.order.index(j) else (share, np.nan, share)
    return share, np.nan, np.nan


def _in_both_orders(one: Decision) -> dict[tuple[int, int], tuple[float, float]]:
    """What a judge's record says of its orders, see `Opinion.details`: by numbers of two responses the share of the
    first one where it was shown first, and where it was shown second."""
    judge = one.judge or {}
    try:
        told = [[0, 1, *judge["orders"]]] if "orders" in judge else judge.get("pairs", [])
        return {(i, j): (_number(first), _number(second)) for i, j, first, second in told}
    except (TypeError, ValueError) as problem:
        name = "orders" if "orders" in judge else "pairs"
        raise PostTrainError(
            f"decision {one.id} of {one.annotator}: `judge.{name}` is {judge[name]!r}, and not the probability of a "
            "response in both orders; mend or remove it"
        ) from problem


def _number(share: float | None) -> float:
    return np.nan if share is None else float(share)


def _share(said: Decision, i: int, j: int) -> float | None:
    if said.probability is not None:
        return said.probability
    ranks: Sequence[int | None] = said.ranks or []
    if all(rank is None for rank in ranks):  # what was not rejected is the better one
        ranks = said.rejected or [None] * len(said.responses)
    one, other = ranks[i], ranks[j]
    if one is None or other is None:
        return None
    return 0.5 if one == other else float(one < other)


def _judge_key(one: Decision) -> str:
    """What makes two judges of one name two annotators; empty for a person."""
    if one.judge is None:
        return ""
    return json.dumps([one.judge.get(name) for name in _IDENTITY], default=str)


def _tell_apart(annotators: Mapping[tuple[str, str], Annotator]) -> None:
    """Number the annotators of one name, so that reports show different ones."""
    many = Counter(one.name for one in annotators.values())
    seen: Counter[str] = Counter()
    for one in annotators.values():
        if many[one.name] > 1:
            seen[one.name] += 1
            one.name = f"{one.name} ({seen[one.name]})"


def _text(response: Mapping[str, Any]) -> str:
    return str(response.get("text") or "")


def _hash(value: object) -> str:
    return blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
