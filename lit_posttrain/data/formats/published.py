"""Published preference data that is not told by the names of its columns alone: a table of sets, each with how it is
recognised and read. Sets of judged pairs, which are, stand in `kinds.JUDGED`.

Records are read as they are published. What a set leaves open (a response that was not rated) is left out; what
prefers nothing is dropped by a reason of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.formats.comparison import Candidate, Comparison
from lit_posttrain.data.formats.comparison_readers import asked
from lit_posttrain.data.formats.ranking_readers import answers, by_rank, listed
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.message_keys import Messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import conversation
from lit_posttrain.data.rows.values import finite_number

STEPS = "of steps, read as one response that is good if every step is right"
JOINED = "made of neighbouring rows with the same prompt, which are compared by helpfulness"
RATED = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # HelpSteer2, 0 to 4
_BY = "helpfulness"  # the one of them that is about preference

Ranks = Sequence[float | None]  # (K,) the lowest is the best, None where nobody said


@dataclass(frozen=True)
class Published:
    """A published set. columns: that a record must have. fits: True if their values are the set's, too. read: the
    comparison of a row; its second argument is False for responses that are still to be compared."""

    columns: tuple[str, ...]
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Row, bool], Comparison]

    def reader(self, labelled: bool) -> Callable[[Row], Comparison]:
        """Reads the comparison of a row, with or without its labels."""
        return lambda row: self.read(row, labelled)


def published(data: Mapping[str, Any]) -> Published | None:
    """The set that a record belongs to; None for one that is unknown, or is told by its columns."""
    return next((one for one in PUBLISHED if all(c in data for c in one.columns) and one.fits(data)), None)


def _ultrafeedback(row: Row, labelled: bool) -> Comparison:
    """openbmb/UltraFeedback: the mean of the fine ratings; `overall_score` is wrong for some rows."""
    given = listed(row, "completions")
    prompt, said = _answers(row, "instruction", "completions", given, used=("annotations",))
    return _ranking(row, prompt, said, [_worse(_fine_rating(one)) for one in given] if labelled else None)


def _fine_rating(completion: str | dict[str, Any]) -> float | None:
    """The mean of the ratings of a completion's aspects; None if none is a number."""
    aspects = completion.get("annotations") if isinstance(completion, dict) else None
    given = [aspect.get("Rating") for aspect in (aspects or {}).values() if isinstance(aspect, dict)]
    known = [number for rating in given if (number := finite_number(rating)) is not None]
    return sum(known) / len(known) if known else None


def _distilabel(row: Row, labelled: bool) -> Comparison:
    """distilabel's UltraFeedback step: a rating for each generation, null where none could be read."""
    given = listed(row, "generations")
    prompt, said = _answers(row, "instruction", "generations", given)
    return _ranking(
        row, prompt, said, [_worse(finite_number(r)) for r in _one_each(row, "ratings", given)] if labelled else None
    )


def _nectar(row: Row, labelled: bool) -> Comparison:
    """Nectar: ranks are floats, 1.0 is the best; equal ones may share the mean of their places, such as 2.5."""
    given = listed(row, "answers")
    prompt, said = _answers(row, "prompt", "answers", given)
    ranks = [finite_number(one.get("rank")) if isinstance(one, dict) else None for one in given]
    return _ranking(row, prompt, said, ranks if labelled else None)


def _reward_bench_2(row: Row, labelled: bool) -> Comparison:
    """RewardBench 2: lists of right and of wrong responses, of which each right one is better than each wrong one."""
    chosen, rejected = listed(row, "chosen"), listed(row, "rejected")
    names = [
        f"{column}[{i}]" for column, side in (("chosen", chosen), ("rejected", rejected)) for i in range(len(side))
    ]
    sides = [conversation(text, name, row.notes) for text, name in zip([*chosen, *rejected], names, strict=True)]
    prompt, said = asked(row, {"prompt": "prompt", "extra": []}, sides, names)
    return _ranking(row, prompt, said, [0.0] * len(chosen) + [1.0] * len(rejected) if labelled else None)


def _helpsteer2(row: Row, labelled: bool) -> Comparison:
    """HelpSteer2 ratings, of which `joined` has put the rows of a prompt together: ranked by helpfulness."""
    given = listed(row, "response")
    row.notes.append(JOINED)
    prompt, said = _answers(row, "prompt", "response", given)
    return _ranking(
        row, prompt, said, [_worse(finite_number(r)) for r in _one_each(row, _BY, given)] if labelled else None
    )


def _stepwise(row: Row, labelled: bool) -> Comparison:
    """TRL's stepwise supervision: the steps of one response, and which of them are right. A part of the steps is no
    whole response, which would teach to stop early: all of them are one, and good if each is right."""
    steps = listed(row, "completions")
    texts = [step for step in steps if isinstance(step, str)]
    response = "".join(text if text.endswith("\n") else f"{text}\n" for text in texts).rstrip("\n")
    said = [conversation(response, "completions", row.notes)]
    prompt, said = asked(row, {"prompt": "prompt", "extra": []}, said, ["completions"])
    if not labelled:
        return Comparison(prompt, [Candidate(said[0])])
    right = _one_each(row, "labels", steps)
    if not all(isinstance(one, bool) for one in right) or not right:
        raise BadRow("label", f"`labels` is {right}; every step needs true or false")
    row.notes.append(STEPS)
    return Comparison(prompt, [Candidate(said[0], {"good": float(all(right))})])


def _answers(
    row: Row, prompt: str, column: str, given: Sequence[str | dict[str, Any]], used: Sequence[str] = ()
) -> tuple[Messages, list[Messages]]:
    return answers(row, {"prompt": prompt, "extra": []}, column, given, used)


def _ranking(row: Row, prompt: Messages, said: Sequence[Messages], ranks: Ranks | None) -> Comparison:
    """ranks: None for responses that are still to be compared."""
    if ranks is None:
        return Comparison(prompt, [Candidate(messages) for messages in said])
    return by_rank(row, prompt, said, ranks)


def _one_each(row: Row, column: str, given: Sequence[Any]) -> list[Any]:
    """The values of a column with one for each response or step."""
    values = row[column]
    if not isinstance(values, list) or len(values) != len(given):
        count = len(values) if isinstance(values, list) else "no"
        raise BadRow("ranks", f"`{column}` has {count} values for {len(given)}; mend it")
    return values


def _worse(rating: float | None) -> float | None:
    """A rating, of which the highest is the best, as a rank."""
    return None if rating is None else -rating


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)


def _of(value: object, *keys: str) -> bool:
    """True for a list of objects with these keys."""
    return isinstance(value, list) and bool(value) and all(isinstance(p, dict) and set(keys) <= set(p) for p in value)


REWARD_BENCH_2 = Published(
    ("prompt", "chosen", "rejected"),
    lambda data: _texts(data["chosen"]) and _texts(data["rejected"]),
    _reward_bench_2,
)
PUBLISHED = (
    Published(
        ("instruction", "completions"), lambda data: _of(data["completions"], "response", "annotations"), _ultrafeedback
    ),
    Published(("instruction", "generations", "ratings"), lambda data: True, _distilabel),
    Published(("prompt", "answers", "num_responses"), lambda data: _of(data["answers"], "answer", "rank"), _nectar),
    REWARD_BENCH_2,
    Published(
        ("prompt", "completions", "labels"),
        lambda data: _texts(data["completions"]) and isinstance(data["labels"], list),
        _stepwise,
    ),
    Published(("prompt", "response", *RATED), lambda data: _texts(data["response"]), _helpsteer2),
)
