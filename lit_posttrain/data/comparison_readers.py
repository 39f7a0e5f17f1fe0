"""Readers of the usual shapes of preference data: pairs, rankings, judged pairs, single labelled responses.

Each function takes the names of its columns and gives a reader of records. A record that cannot be used raises
`BadRow`, one that prefers nothing `NoPreference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from lit_posttrain.data.messages import BadRow, NoPreference, kind
from lit_posttrain.data.turns import conversation
from lit_posttrain.types import Role

Annotators = Literal["soft", "majority"]
_TEXT_OF_RESPONSE = ("text", "content", "response", "completion", "output")
_GOOD = {"good": True, "true": True, "1": True, "desirable": True, "bad": False, "false": False, "0": False}
_GOOD["undesirable"] = _GOOD["-1"] = False


@dataclass(slots=True)
class Candidate:
    """One response, as messages that follow the prompt, with its role and label as in `types.Response`."""

    messages: list[dict[str, Any]]
    role: Role
    label: float = 0.0


@dataclass(slots=True)
class Comparison:
    """A prompt and the responses that somebody compared."""

    prompt: list[dict[str, Any]]
    candidates: list[Candidate] = field(default_factory=list)


def paired(columns: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Comparison]:
    """A reader of rows with a chosen and a rejected response: transcripts, strings or messages, with the prompt in a
    column of its own or as what both sides begin with.

    columns: names of `chosen` and `rejected`, of `prompt` and `margin` or None, and the list of `extra`.
    """

    def read(data: Mapping[str, Any]) -> Comparison:
        found = sides_of(data)
        if columns["margin"] and columns["labelled"]:
            found.candidates[0].label = _margin(data[columns["margin"]], str(columns["margin"]))
        return found

    def sides_of(data: Mapping[str, Any]) -> Comparison:
        names = [columns["chosen"], columns["rejected"]]
        sides = [conversation(data[name], str(name)) for name in names]
        if columns["prompt"]:
            prompt = _asked(data, columns)
            said = [_without_system(side) for side in sides]
            bare = _without_system(prompt)
            tails = [side[len(bare) :] if side[: len(bare)] == bare else side for side in said]
            return _pair(prompt, tails[0], tails[1], labelled=columns["labelled"])
        whole = all(isinstance(data[name], str) for name in names)
        prompt = _shared(sides[0], sides[1], only_last=whole)
        tails = [side[len(prompt) :] for side in sides]
        return _pair(_with_system(prompt, data), tails[0], tails[1], labelled=columns["labelled"])

    return read


def _margin(value: Any, column: str) -> float:
    if value is None:
        return 0.0
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise BadRow("margin", f"`{column}` is {value!r}; a margin is a number, or null where nobody gave one")
    return margin


def _asked(data: Mapping[str, Any], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The prompt of a row: its column, with the texts of the `extra` columns below it, behind a `system` column."""
    name = str(columns["prompt"])
    if data[name] is None:
        raise BadRow("empty prompt", f"`{name}` is null; fill or remove the row")
    prompt = conversation(data[name], name, "user")
    more = [data[column] for column in columns["extra"] if column != name and data.get(column)]
    if not all(isinstance(part, str) for part in more):
        raise BadRow("wrong type", f"{' or '.join(columns['extra'])} is not a string; mend it")
    prompt[-1]["content"] = "\n\n".join([prompt[-1]["content"], *more])
    return _with_system(prompt, data)


def _with_system(prompt: list[dict[str, Any]], data: Mapping[str, Any]) -> list[dict[str, Any]]:
    system = data.get("system")
    if isinstance(system, str) and system.strip() and prompt[0]["role"] not in ("system", "developer"):
        return [{"role": "system", "content": system}, *prompt]
    return prompt


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return messages[1:] if messages and messages[0]["role"] in ("system", "developer") else messages


def _pair(
    prompt: list[dict[str, Any]],
    first: list[dict[str, Any]],
    second: list[dict[str, Any]],
    flipped: float = 0.0,
    labelled: bool = True,
) -> Comparison:
    if labelled and [m["content"].strip() for m in first] == [m["content"].strip() for m in second]:
        raise NoPreference("equal responses", "both responses are the same: no preference; remove the row")
    for side in (first, second):
        if not side or side[0]["role"] != "assistant":
            said = ", ".join(m["role"] for m in side) or "nothing"
            raise BadRow(
                "no response", f"a response must begin with the assistant's turn, this one has {said}; mend it"
            )
    if not labelled:
        return Comparison(prompt, [Candidate(first, Role.SAMPLE), Candidate(second, Role.SAMPLE)])
    return Comparison(prompt, [Candidate(first, Role.CHOSEN), Candidate(second, Role.REJECTED, flipped)])


def _shared(first: list[dict[str, Any]], second: list[dict[str, Any]], only_last: bool) -> list[dict[str, Any]]:
    """What both sides begin with, up to the turn in which they part. only_last: that must be the last one."""
    if [m["content"].strip() for m in first] == [m["content"].strip() for m in second]:
        raise NoPreference("equal responses", "both responses are the same: no preference; remove the row")
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    if same == 0 or (only_last and not len(first) == len(second) == same + 1):
        raise NoPreference(
            "no shared prompt", "the two sides begin differently: they answer no common prompt; remove the row"
        )
    return first[:same]


def ranked(columns: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Comparison]:
    """A reader of rows with a list of ranked responses: objects with text and rank (0 or 1 is the best, equal ranks are
    ties), or strings beside a list of ranks.

    columns: names of `prompt` and `responses`, and of `ranks` or None.
    """

    def read(data: Mapping[str, Any]) -> Comparison:
        prompt = _asked(data, columns)
        given, name = data[str(columns["responses"])], str(columns["responses"])
        if not isinstance(given, list) or not all(isinstance(r, (str, dict)) for r in given):
            raise BadRow("wrong type", f"`{name}` is {kind(given)}, not a list of responses; mend it")
        texts = [_text_of(r, f"{name}[{i}]") for i, r in enumerate(given)]
        said = [conversation(text, f"{name}[{i}]") for i, text in enumerate(texts)]
        if not columns["labelled"]:
            return Comparison(prompt, [Candidate(m, Role.SAMPLE) for m in said])
        if len(given) < 2:
            raise BadRow("one response", f"`{name}` has {len(given)} responses; a comparison needs two or more")
        ranks = (
            data[columns["ranks"]]
            if columns["ranks"]
            else [r.get("rank") if isinstance(r, dict) else None for r in given]
        )
        if not columns["ranks"] and all(rank is None for rank in ranks):
            raise BadRow(
                "no ranks",
                f"the responses in `{name}` have no ranks; write objects with text and rank, or name a column with a "
                "list of ranks with --data.columns.ranks",
            )
        places = _ranks(ranks, len(given))
        return Comparison(prompt, [Candidate(m, Role.RANKED, r) for m, r in zip(said, places, strict=True)])

    return read


def _text_of(response: str | dict[str, Any], where: str) -> Any:
    if isinstance(response, str):
        return response
    found = next((response[name] for name in _TEXT_OF_RESPONSE if name in response), None)
    if found is None:
        raise BadRow("no text", f"{where} has none of {', '.join(_TEXT_OF_RESPONSE)}; mend it")
    return found


def _ranks(values: Any, count: int) -> list[float]:
    """Ranks from 0 on. Ties share a rank; the next one follows either directly or after as many places as there are
    ties.

    Raises:
        BadRow: not one whole number a response, all equal, or gaps that no counting of ties explains.
    """
    if not isinstance(values, list) or len(values) != count:
        raise BadRow(
            "ranks", f"{len(values) if isinstance(values, list) else 'no'} ranks for {count} responses; mend them"
        )
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise BadRow("ranks", f"the ranks {values} are not whole numbers; mend them")
    order = sorted(set(values))
    if len(order) == 1:
        raise NoPreference("all tied", "every response has the same rank: no preference; remove the row")
    dense = all(b - a == 1 for a, b in pairwise(order))
    standard = all(sum(v < rank for v in values) == rank - order[0] for rank in order)
    if order[0] not in (0, 1) or not (dense or standard):
        raise BadRow("ranks", f"the ranks {values} have gaps; count from 0 or 1, equal ranks are ties")
    return [float(order.index(v)) for v in values]


def judged(columns: Mapping[str, Any], annotators: Annotators) -> Callable[[Mapping[str, Any]], Comparison]:
    """A reader of rows with two responses and who preferred which: 1 or 2 (0 is a tie), of one judge or several.

    columns: names of `prompt`, `first` and `second`; lists of `extra` (added to the prompt) and of `labels`.
    annotators: `soft` keeps the share of votes as a probability (a tie is half a vote for either), `majority` takes the
        more frequent vote as certain.
    """

    def read(data: Mapping[str, Any]) -> Comparison:
        prompt = _asked(data, columns)
        first, second = (conversation(data[columns[name]], str(columns[name])) for name in ("first", "second"))
        if not columns["labelled"]:
            return Comparison(prompt, [Candidate(first, Role.SAMPLE), Candidate(second, Role.SAMPLE)])
        share = _share_for_first([data[c] for c in columns["labels"]], columns["labels"])
        if annotators == "majority" and share == 0.5:
            raise NoPreference(
                "no majority", "the annotators are divided or see a tie: no preference; pass --data.annotators soft"
            )
        if share < 0.5:
            first, second, share = second, first, 1 - share
        return _pair(prompt, first, second, flipped=0.0 if annotators == "majority" else 1 - share)

    return read


def _share_for_first(votes: Sequence[Any], names: Sequence[str]) -> float:
    points = {"0": 0.5, "1": 1.0, "2": 0.0}  # a CSV file holds texts
    for name, vote in zip(names, votes, strict=True):
        if str(vote).strip() not in points:
            raise BadRow("label", f"`{name}` is {vote!r}; it must be 1, 2, or 0 for a tie")
    return sum(points[str(vote).strip()] for vote in votes) / len(votes)


def unpaired(columns: Mapping[str, str]) -> Callable[[Mapping[str, Any]], Comparison]:
    """A reader of rows with one response and whether it is good. columns: names of `prompt`, `completion`, `good`."""

    def read(data: Mapping[str, Any]) -> Comparison:
        label = data[columns["good"]]
        good = _GOOD.get(str(label).strip().lower())
        if good is None:
            raise BadRow("label", f"`{columns['good']}` is {label!r}, neither good nor bad; write true or false")
        prompt = _asked(data, columns)
        answer = conversation(data[columns["completion"]], columns["completion"])
        return Comparison(prompt, [Candidate(answer, Role.CHOSEN if good else Role.REJECTED)])

    return read
