"""Readers of the usual kinds of preference data: pairs, judged pairs, single labelled responses; for rankings see
`ranking_readers`.

Each function takes the names of its columns and returns a reader of rows. A row that cannot be used raises `BadRow`,
one without a preference `NothingToLearn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lit_posttrain.data.formats.comparison import Candidate, Comparison, equal_responses, shared_prompt
from lit_posttrain.data.formats.prompt_texts import behind_prompt, empty_prompt
from lit_posttrain.data.rows.bad_rows import BadRow, Misread, NothingToLearn
from lit_posttrain.data.rows.beside import with_thoughts
from lit_posttrain.data.rows.kinds import GOOD_WORDS
from lit_posttrain.data.rows.message_checks import check_order, same, says
from lit_posttrain.data.rows.message_keys import SYSTEM, Messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import conversation
from lit_posttrain.data.rows.votes import Votes, whole_number

# columns of scores that public sets have beside pairs
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
Annotators = Literal["soft", "majority"]


def paired(columns: Mapping[str, Any]) -> Callable[[Row], Comparison]:
    """A reader of rows with a chosen and a rejected response: transcripts, strings or messages, with the prompt in a
    column of its own or at the beginning of both sides.

    columns: names of `chosen` and `rejected`, of `prompt` and `margin` or None, and the list of `extra`. `margin`
    may be a list of two, the scores of both sides.
    """

    def read(row: Row) -> Comparison:
        names = [str(columns["chosen"]), str(columns["rejected"])]
        prompt, tails = _apart(row, columns, names)
        found = _pair(prompt, tails[0], tails[1], labelled=columns["labelled"])
        if columns["labelled"]:
            _compare_scores(row)
            margin = columns["margin"] or "margin"  # later rows may have what the first one lacks
            found.candidates[0].labels |= _apart_by(row, *margin) if isinstance(margin, list) else _margin(row, margin)
        return found

    return read


def _compare_scores(row: Row) -> None:
    """Note it if the scores of a pair, which are not used, rate the rejected side higher."""
    for chosen, rejected in _SCORES:
        scores = row.peek(chosen), row.peek(rejected)
        if all(isinstance(score, (int, float)) for score in scores) and scores[0] < scores[1]:
            row.notes.append(f"with a `{rejected}` above `{chosen}`: which side is better is in doubt")


def _apart(row: Row, columns: Mapping[str, Any], names: Sequence[str]) -> tuple[Messages, list[Messages]]:
    """The prompt of a row, and the parts of its two sides that follow it."""
    values = [row[name] for name in names]
    sides = [conversation(value, name, row.notes) for value, name in zip(values, names, strict=True)]
    if columns["prompt"]:
        return asked(row, columns, sides, names)
    prompt = shared_prompt(sides[0], sides[1], only_last=all(isinstance(value, str) for value in values))
    return prompt, [side[len(prompt) :] for side in sides]


def _margin(row: Row, column: str, signed: bool = False) -> dict[str, float]:
    """The margin in a column; none where it is empty or not there. signed: below 0 it is of the second response."""
    margin = _number(row[column], column) if column in row else None
    if margin is not None and margin < 0 and not signed:
        told = f"`{column}` is {row[column]!r}: below 0 the rejected side is the better one; mend the row"
        raise BadRow("margin", told)
    return {} if margin is None else {"margin": abs(margin)}


def _apart_by(row: Row, chosen: str, rejected: str) -> dict[str, float]:
    """The margin by the columns with the scores of both sides; none where one is empty."""
    scores = _number(row[chosen], chosen), _number(row[rejected], rejected)
    if scores[0] is None or scores[1] is None:
        return {}
    if scores[0] < scores[1]:
        told = f"`{rejected}` is above `{chosen}`: which side is better is in doubt; remove the row"
        raise NothingToLearn("scores the other way round", told)
    return {"margin": scores[0] - scores[1]}


def _number(value: Any, column: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow("margin", f"`{column}` is {value!r}; a margin is a number, or null for none")
    return number


def asked(
    row: Row, columns: Mapping[str, Any], sides: Sequence[Messages], names: Sequence[str]
) -> tuple[Messages, list[Messages]]:
    """The prompt of a row, and the part of each response that follows it; see `behind_prompt`."""
    name = str(columns["prompt"])
    if row[name] is None:
        raise BadRow("empty prompt", f"`{name}` is null; fill or remove the row")
    prompt = conversation(row[name], name, row.notes, "user")
    prompt, said = behind_prompt(row, prompt, columns["extra"], sides, name, names)
    if not any(says(message) for message in prompt if message["role"] not in SYSTEM):
        raise empty_prompt(name)
    return prompt, said


def _pair(
    prompt: Messages, first: Messages, second: Messages, flip_prob: float = 0.0, labelled: bool = True
) -> Comparison:
    if same(first, second) and (labelled or not first):  # of equal conversations everything is common prompt
        raise equal_responses()
    for side in (first, second):
        if not side or side[0]["role"] != "assistant":
            said = ", ".join(m["role"] for m in side) or "nothing"
            raise BadRow(
                "no response", f"a response must begin with the assistant's turn, this one has {said}; mend it"
            )
    if not labelled:
        return Comparison(prompt, [Candidate(first), Candidate(second)])
    soft = {"flip_prob": flip_prob} if flip_prob else {}
    return Comparison(prompt, [Candidate(first, {"rank": 0.0}), Candidate(second, {"rank": 1.0, **soft})])


def judged(columns: Mapping[str, Any], annotators: Annotators) -> Callable[[Row], Comparison]:
    """A reader of rows with two responses and the votes of one or several judges.

    columns: names of `prompt`, `first` and `second`; the list of `extra` (added to the prompt), the `votes`, and the
    `margin`, which may be below 0 for the second response, or None.
    annotators: `soft` keeps the share of votes as a probability (a tie is half a vote for each), `majority` takes the
    more frequent vote as certain.
    """

    votes: Votes = columns["votes"]

    def read(row: Row) -> Comparison:
        names = [str(columns["first"]), str(columns["second"])]
        prompt, (first, second) = _apart(row, columns, names)
        if not columns["labelled"]:
            return _pair(prompt, first, second, labelled=False)
        given = [row[column] for column in votes.columns]
        share = votes.share_for_first(given)
        if annotators == "majority" and share == 0.5:
            raise NothingToLearn(
                "no majority", "the annotators are divided or see a tie: no preference; pass --data.annotators soft"
            )
        if share < 0.5:
            first, second, share, names = second, first, 1 - share, names[::-1]
        found = _pair(prompt, first, second, flip_prob=0.0 if annotators == "majority" else 1 - share)
        bad = {"good": 0.0} if votes.neither(given) else {}
        for candidate, name in zip(found.candidates, names, strict=True):
            candidate.labels |= bad | _safe(row, name)
        found.candidates[0].labels |= _margin(row, columns["margin"], signed=True) if columns["margin"] else {}
        return found

    return read


def _safe(row: Row, column: str) -> dict[str, float]:
    """The label `safe` of a response, 1 or 0, where a column `is_..._safe` says so, as in PKU-SafeRLHF."""
    safe = row[name] if (name := f"is_{column}_safe") in row else None
    return {"safe": float(safe)} if isinstance(safe, bool) else {}


def unpaired(columns: Mapping[str, str]) -> Callable[[Row], Comparison]:
    """A reader of rows with one response and a mark for good or bad. columns: names of `prompt`, `completion`,
    `good`."""

    def read(row: Row) -> Comparison:
        good = _verdict(row, columns["good"])
        name = str(columns["completion"])
        prompt, (answer,) = asked(row, columns, [conversation(row[name], name, row.notes)], [name])
        return Comparison(prompt, [Candidate(with_thoughts(row, answer), {"good": float(good)})])

    return read


def unpaired_whole(columns: Mapping[str, str]) -> Callable[[Row], Comparison]:
    """A reader of conversations whose last response is good or bad. columns: names of `conversation` and `good`."""

    def read(row: Row) -> Comparison:
        good, name = _verdict(row, columns["good"]), columns["conversation"]
        turns = conversation(row[name], name, row.notes)
        check_order(turns)
        asked = max(i for i, turn in enumerate(turns) if turn["role"] not in ("assistant", "tool")) + 1
        if asked == len(turns):
            raise BadRow(
                "no response", f"`{name}` ends with a question; add the response that `{columns['good']}` is about"
            )
        found = Candidate(turns[asked:], {"good": float(good)})
        return Comparison(turns[:asked], [found])

    return read


def _verdict(row: Row, column: str) -> bool:
    label = row[column]
    good = GOOD_WORDS.get(str(label).strip().lower())
    good = {1: True, 0: False, -1: False}.get(number) if (number := whole_number(label)) is not None else good
    if good is None:
        what = f"`{column}` is {label!r}, neither good nor bad; write true or false"
        raise (BadRow if label in (None, "") else Misread)("label", what)
    return good
