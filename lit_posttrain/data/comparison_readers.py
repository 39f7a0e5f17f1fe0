"""Readers of the usual shapes of preference data: pairs, rankings, judged pairs, single labelled responses.

Each function takes the names of its columns and gives a reader of rows. A row that cannot be used raises `BadRow`, one
that prefers nothing `NothingToLearn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, Literal

from lit_posttrain.data.bad_rows import BadRow, Misread, NothingToLearn
from lit_posttrain.data.beside import with_thoughts
from lit_posttrain.data.comparison import Candidate, Comparison, Messages, after_prompt, equal_responses, shared_prompt
from lit_posttrain.data.formats import empty_prompt, with_added
from lit_posttrain.data.kinds import GOOD_WORDS
from lit_posttrain.data.messages import REASONING, SYSTEM, as_json, check_order, kind, same, says
from lit_posttrain.data.row import Row
from lit_posttrain.data.turns import conversation
from lit_posttrain.data.votes import Votes, whole_number
from lit_posttrain.types import Role

Annotators = Literal["soft", "majority"]
_TEXT_OF_RESPONSE = ("text", "content", "response", "completion", "output", "answer")
_RANKS_ARE = (
    "ranks count from 0 or 1, equal ones are ties, and the lowest is the best (of scores the highest: name those with "
    "--data.columns.scores)"
)


def paired(columns: Mapping[str, Any]) -> Callable[[Row], Comparison]:
    """A reader of rows with a chosen and a rejected response: transcripts, strings or messages, with the prompt in a
    column of its own or as what both sides begin with.

    columns: names of `chosen` and `rejected`, of `prompt` and `margin` or None, and the list of `extra`.
    """

    def read(row: Row) -> Comparison:
        names = [str(columns["chosen"]), str(columns["rejected"])]
        values = [row[name] for name in names]
        sides = [conversation(value, name, row.notes) for value, name in zip(values, names, strict=True)]
        if columns["prompt"]:
            prompt, tails = _asked(row, columns, sides, names)
        else:
            prompt = shared_prompt(sides[0], sides[1], only_last=all(isinstance(value, str) for value in values))
            tails = [side[len(prompt) :] for side in sides]
        found = _pair(prompt, tails[0], tails[1], labelled=columns["labelled"])
        found.whole = not columns["prompt"]
        margin = str(columns["margin"] or "margin")  # later rows may have what the first one lacks
        if margin in row and columns["labelled"]:
            found.candidates[0].label = _margin(row[margin], margin)
        return found

    return read


def _margin(value: Any, column: str) -> float:
    if value is None or value == "":
        return 0.0
    try:
        margin = float(value)
    except (TypeError, ValueError, OverflowError):
        margin = math.nan
    if not math.isfinite(margin):
        raise BadRow("margin", f"`{column}` is {value!r}; a margin is a number, or null where nobody gave one")
    return margin


def _asked(
    row: Row, columns: Mapping[str, Any], sides: Sequence[Messages], names: Sequence[str]
) -> tuple[Messages, list[Messages]]:
    """The prompt of a row, and of each of its responses what follows the prompt. The prompt is its column, with the
    texts of the `extra` columns below it, unless the responses themselves begin with it and have none of those."""
    name = str(columns["prompt"])
    if row[name] is None:
        raise BadRow("empty prompt", f"`{name}` is null; fill or remove the row")
    prompt = conversation(row[name], name, row.notes, "user")
    extra = [column for column in columns["extra"] if row.first((column,))]
    if extra and isinstance(row[name], str) and prompt[-1]["role"] == "user":
        if any(side[0]["role"] != "assistant" for side in sides):
            with suppress(BadRow):
                return after_prompt(prompt, sides, name, names)
        prompt[-1]["content"] = with_added(prompt[-1]["content"], row, extra)
    prompt, said = after_prompt(prompt, sides, name, names)
    if not any(says(message) for message in prompt if message["role"] not in SYSTEM):
        raise empty_prompt(name)
    return prompt, said


def _pair(
    prompt: Messages, first: Messages, second: Messages, flipped: float = 0.0, labelled: bool = True
) -> Comparison:
    if labelled and same(first, second):
        raise equal_responses()
    for side in (first, second):
        if not side or side[0]["role"] != "assistant":
            said = ", ".join(m["role"] for m in side) or "nothing"
            raise BadRow(
                "no response", f"a response must begin with the assistant's turn, this one has {said}; mend it"
            )
    if not labelled:
        return Comparison(prompt, [Candidate(first, Role.SAMPLE), Candidate(second, Role.SAMPLE)])
    return Comparison(prompt, [Candidate(first, Role.CHOSEN), Candidate(second, Role.REJECTED, flipped)])


def ranked(columns: Mapping[str, Any]) -> Callable[[Row], Comparison]:
    """A reader of rows with a list of ranked responses: objects with text and rank (0 or 1 is the best, equal ranks are
    ties), or strings beside a list of ranks.

    columns: names of `prompt` and `responses`, and of `ranks` and `scores` or None.
    """

    def read(row: Row) -> Comparison:
        name = str(columns["responses"])
        given = _listed(row[name], name)
        if not isinstance(given, list) or not all(isinstance(r, (str, dict)) for r in given):
            raise BadRow("wrong type", f"`{name}` is {kind(given)}, not a list of responses; mend it")
        places = [f"{name}[{i}]" for i in range(len(given))]
        answers = [_response(r, place, name, row) for r, place in zip(given, places, strict=True)]
        prompt, said = _asked(row, columns, answers, places)
        if not columns["labelled"]:
            return Comparison(prompt, [Candidate(m, Role.SAMPLE) for m in said])
        if len(given) < 2:
            raise BadRow("one response", f"`{name}` has {len(given)} responses; a comparison needs two or more")
        ranks = [r.get("rank") if isinstance(r, dict) else None for r in given]
        if column := columns["ranks"]:
            ranks = _listed(row[column], column)
        elif column := columns["scores"]:
            ranks = _ranks_of_scores(_listed(row[column], column), column)
        elif all(rank is None for rank in ranks):
            raise BadRow(
                "no ranks",
                f"the responses in `{name}` have no ranks; write objects with text and rank, or name a column with a "
                "list of ranks with --data.columns.ranks, or with one of scores with --data.columns.scores",
            )
        found = zip(said, _ranks(ranks, len(given)), strict=True)
        return Comparison(prompt, [Candidate(messages, Role.RANKED, rank) for messages, rank in found])

    return read


def _listed(value: Any, column: str) -> Any:
    """A list, also where a CSV file has it as JSON text."""
    return as_json(value, column) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _response(response: str | dict[str, Any], where: str, column: str, row: Row) -> Messages:
    """A response of a list: a string, or an object with its text, or its messages, under one of several names."""
    if isinstance(response, str):
        return conversation(response, where, row.notes)
    found = next((name for name in _TEXT_OF_RESPONSE if response.get(name) is not None), None)
    if found is None and not response.get("tool_calls"):
        raise BadRow("no text", f"{where} has none of {', '.join(_TEXT_OF_RESPONSE)}; mend it")
    value = "" if found is None else response[found]
    more = {key: response[key] for key in ("tool_calls", *REASONING) if response.get(key)}
    alone = isinstance(value, str)
    if alone and more:
        value = [{"role": "assistant", "content": value, **more}]
    read = {found, "rank", "role", *(more if alone else ())}
    row.unused += [f"{column}[].{key}" for key, part in response.items() if part is not None and key not in read]
    return conversation(value, where, row.notes)


def _ranks_of_scores(values: Any, column: str) -> Any:
    """Ranks from 0 on, of scores of which the highest is the best."""
    if not isinstance(values, list):
        return values
    try:
        scores = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        scores = [math.nan]
    if not all(map(math.isfinite, scores)):
        raise BadRow("scores", f"`{column}` is {values}; every response needs a score, which is a number")
    return [sorted(set(scores), reverse=True).index(score) for score in scores]


def _ranks(values: Any, count: int) -> list[float]:
    """Ranks from 0 on. Ties share a rank; the next one follows either directly or after as many places as there are
    ties.

    Raises:
        BadRow: not one whole number a response, all equal, or gaps that no counting of ties explains.
        Misread: a number that no rank can be, such as a score.
    """
    if not isinstance(values, list) or len(values) != count:
        raise BadRow(
            "ranks", f"{len(values) if isinstance(values, list) else 'no'} ranks for {count} responses; mend them"
        )
    ranks = [whole for value in values if (whole := whole_number(value)) is not None]
    if len(ranks) < count:
        numbers = all(isinstance(value, (int, float)) for value in values)
        raise (Misread if numbers else BadRow)("ranks", f"the ranks {values} are not whole numbers; {_RANKS_ARE}")
    order = sorted(set(ranks))
    if len(order) == 1:
        raise NothingToLearn("all tied", "every response has the same rank: no preference; remove the row")
    dense = all(b - a == 1 for a, b in pairwise(order))
    standard = all(sum(v < rank for v in ranks) == rank - order[0] for rank in order)
    if order[0] < 0 or order[-1] > count:
        raise Misread(
            "ranks",
            f"the ranks {values} of {count} responses have gaps; {_RANKS_ARE}",
        )
    if order[0] not in (0, 1) or not (dense or standard):
        raise BadRow("ranks", f"the ranks {values} have gaps; {_RANKS_ARE}")
    return [float(order.index(v)) for v in ranks]


def judged(columns: Mapping[str, Any], annotators: Annotators) -> Callable[[Row], Comparison]:
    """A reader of rows with two responses and who preferred which, of one judge or several.

    columns: names of `prompt`, `first` and `second`; the list of `extra` (added to the prompt), and the `votes`.
    annotators: `soft` keeps the share of votes as a probability (a tie is half a vote for either), `majority` takes the
        more frequent vote as certain.
    """

    votes: Votes = columns["votes"]

    def read(row: Row) -> Comparison:
        names = [str(columns["first"]), str(columns["second"])]
        sides = [conversation(row[name], name, row.notes) for name in names]
        prompt, (first, second) = _asked(row, columns, sides, names)
        if not columns["labelled"]:
            return _pair(prompt, first, second, labelled=False)
        share = votes.share_for_first([row[column] for column in votes.columns])
        if annotators == "majority" and share == 0.5:
            raise NothingToLearn(
                "no majority", "the annotators are divided or see a tie: no preference; pass --data.annotators soft"
            )
        if share < 0.5:
            first, second, share = second, first, 1 - share
        return _pair(prompt, first, second, flipped=0.0 if annotators == "majority" else 1 - share)

    return read


def unpaired(columns: Mapping[str, str]) -> Callable[[Row], Comparison]:
    """A reader of rows with one response and whether it is good. columns: names of `prompt`, `completion`, `good`."""

    def read(row: Row) -> Comparison:
        good = _verdict(row, columns["good"])
        name = str(columns["completion"])
        prompt, (answer,) = _asked(row, columns, [conversation(row[name], name, row.notes)], [name])
        return Comparison(prompt, [Candidate(with_thoughts(row, answer), Role.CHOSEN if good else Role.REJECTED)])

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
        found = Candidate(turns[asked:], Role.CHOSEN if good else Role.REJECTED)
        return Comparison(turns[:asked], [found], whole=True)

    return read


def _verdict(row: Row, column: str) -> bool:
    label = row[column]
    good = GOOD_WORDS.get(str(label).strip().lower())
    good = {1: True, 0: False, -1: False}.get(number) if (number := whole_number(label)) is not None else good
    if good is None:
        what = f"`{column}` is {label!r}, neither good nor bad; write true or false"
        raise (BadRow if label in (None, "") else Misread)("label", what)
    return good
