"""Turn a record of any usual shape of preference data into a `Comparison`: a prompt and its labelled responses.

As in formats.py, the columns of a file's first record decide, later records are checked against that, and a record that
cannot be used raises `BadRow`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from lit_posttrain.data.formats import require_columns
from lit_posttrain.data.messages import ROLES, BadRow, NoPreference, as_messages, kind
from lit_posttrain.data.sources import Record
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Role

Annotators = Literal["soft", "majority"]
_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_SPEAKER = re.compile(r"\s*(Human|Assistant):")
_INPUT = ("input", "context")
_TEXT_OF_RESPONSE = ("text", "content", "response", "completion", "output")
_GOOD = {"good": True, "true": True, "1": True, "desirable": True, "bad": False, "false": False, "0": False}
_GOOD["undesirable"] = _GOOD["-1"] = False
_ANNOTATOR = re.compile(r"annotator_?\d+$")


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


@dataclass(frozen=True)
class ComparisonFormat:
    """How the records of one file become comparisons. `name` is what the audit calls it."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], Comparison]


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
        sides = [_conversation(data[name], str(name)) for name in names]
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
    prompt = _conversation(data[name], name, "user")
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
        raise NoPreference("equal sides", "both responses are the same: no preference; remove the row")
    for side in (first, second):
        if not side or side[0]["role"] != "assistant":
            said = ", ".join(m["role"] for m in side) or "nothing"
            raise BadRow(
                "no response", f"a response must begin with the assistant's turn, this one has {said}; mend it"
            )
    if not labelled:
        return Comparison(prompt, [Candidate(first, Role.SAMPLE), Candidate(second, Role.SAMPLE)])
    return Comparison(prompt, [Candidate(first, Role.CHOSEN), Candidate(second, Role.REJECTED, flipped)])


def _conversation(value: Any, column: str, role: str = "assistant") -> list[dict[str, Any]]:
    """Messages, of a list of them (also as JSON text), of a transcript, or of one string that `role` said."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        value = _messages_in(value)
    if isinstance(value, list):
        return _said(value, column)
    if not isinstance(value, str):
        raise BadRow("wrong type", f"`{column}` is {kind(value)}, not a string or a list of messages; mend it")
    if role == "user" and _SPEAKER.match(value):  # a prompt may lack the first empty lines
        return _transcript(f"\n\n{value.lstrip()}", column, prompt=True)
    if _TURN.match(value):
        return _transcript(value, column)
    return _said([{"role": role, "content": value}], column)


def _messages_in(text: str) -> Any:
    """Messages of JSON text, or the text itself: a response may be JSON."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text
    speakers = isinstance(found, list) and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in found)
    return found if speakers else text


def _transcript(text: str, column: str, prompt: bool = False) -> list[dict[str, Any]]:
    r"""`\n\nHuman: ... \n\nAssistant: ...` as messages. A prompt may end with the name of who is to answer."""
    parts = _TURN.split(text)[1:]
    turns = [(ROLES[speaker.lower()], said.strip()) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    if prompt and turns[-1] == ("assistant", ""):
        turns.pop()
    if not all(said for _, said in turns[:-1]):
        raise NoPreference("empty turn", f"a turn in the middle of `{column}` is empty; mend or remove the row")
    return _said([{"role": role, "content": said} for role, said in turns], column)


def _said(messages: list[Any], column: str) -> list[dict[str, Any]]:
    """Messages whose last one may turn out to be empty: a response that nobody can prefer for what it says."""
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    text = last.get("content", last.get("value"))
    speaker = ROLES.get(str(last.get("role", last.get("from"))).strip().lower())
    if speaker == "assistant" and isinstance(text, str) and not text.strip() and not last.get("tool_calls"):
        raise NoPreference("empty response", f"`{column}` is or ends with an empty response: there is nothing to score")
    return as_messages(messages, column)


def _shared(first: list[dict[str, Any]], second: list[dict[str, Any]], only_last: bool) -> list[dict[str, Any]]:
    """What both sides begin with, up to the turn in which they part. only_last: that must be the last one."""
    if [m["content"].strip() for m in first] == [m["content"].strip() for m in second]:
        raise NoPreference("equal sides", "both responses are the same: no preference; remove the row")
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
        said = [_conversation(text, f"{name}[{i}]") for i, text in enumerate(texts)]
        if not columns["labelled"]:
            return Comparison(prompt, [Candidate(m, Role.SAMPLE) for m in said])
        if len(given) < 2:
            raise BadRow("one response", f"`{name}` has {len(given)} responses; a comparison needs two or more")
        ranks = (
            data[columns["ranks"]]
            if columns["ranks"]
            else [r.get("rank") if isinstance(r, dict) else None for r in given]
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
        first, second = (_conversation(data[columns[name]], str(columns[name])) for name in ("first", "second"))
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
        answer = _conversation(data[columns["completion"]], columns["completion"])
        return Comparison(prompt, [Candidate(answer, Role.CHOSEN if good else Role.REJECTED)])

    return read


@dataclass
class PreferenceColumns:
    """Names of the columns to use where they are not recognised by themselves.

    Args:
        prompt: Column with the prompt: a string, a transcript, or a list of messages.
        chosen: Column with the preferred response. Needs `rejected`.
        rejected: Column with the other response.
        margin: Column that says by how much `chosen` is better; reward models ask for that much.
        responses: Column with a list of responses: strings, or objects with text and rank. Needs `prompt`.
        ranks: Column with a list of ranks, where `responses` holds strings; lowest is best, equal ones are ties.
        first: Column with one of two judged responses. Needs `prompt`, `second` and `labels`.
        second: Column with the other one.
        labels: Columns with the judgements: 1, 2, or 0 for a tie; one for every annotator.
        completion: Column with a single response. Needs `prompt` and `good`.
        good: Column that says whether the single response is good.
    """

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    margin: str | None = None
    responses: str | None = None
    ranks: str | None = None
    first: str | None = None
    second: str | None = None
    labels: list[str] | None = None
    completion: str | None = None
    good: str | None = None


def recognise_comparison(
    record: Record, columns: PreferenceColumns | None = None, annotators: Annotators = "soft", labelled: bool = True
) -> ComparisonFormat:
    """Decide by the columns of a file's first record, or by the columns that the user named. labelled: False for
    responses that are yet to be compared: they stay in the record's order, whatever its labels and ranks.

    Raises:
        PostTrainError: a named column does not exist, or no known set of columns does.
    """
    data, named = record.data, columns or PreferenceColumns()
    require_columns(record, named)
    wanted = {name: value for name, value in vars(named).items() if value is not None}
    guessed = _guessed(data)
    if set(wanted) - {"prompt"}:  # the user says what is compared; only what it answers is guessed beside that
        guessed = {name: guessed[name] for name in ("prompt", "extra", "margin") if name in guessed}
    found = {**guessed, **wanted}
    for name, needs, make in _SHAPES:
        needs = tuple(need for need in needs if labelled or need != "labels")
        if set(needs) <= set(found) and (labelled or name != "unpaired"):
            used = {key: found.get(key) for key in (*needs, *_OPTIONAL.get(name, ()))}
            needed = [c for value in used.values() if value for c in (value if isinstance(value, list) else [value])]
            read = make({**used, "extra": found.get("extra", []), "labelled": labelled}, annotators)
            return ComparisonFormat("/".join(needed), tuple(needed), read)
    raise PostTrainError(
        f"{record.file}:{record.line}: columns not recognised as preferences: {', '.join(data)}; name them with "
        "--data.columns.prompt X --data.columns.chosen Y --data.columns.rejected Z (or columns.responses, "
        "columns.first/second/labels, columns.completion/good)"
    )


_OPTIONAL = {"pair": ("prompt", "margin"), "ranking": ("ranks",)}
_SHAPES: tuple[tuple[str, tuple[str, ...], Callable[[Any, Annotators], Any]], ...] = (
    ("pair", ("chosen", "rejected"), lambda used, _: paired(used)),
    ("ranking", ("prompt", "responses"), lambda used, _: ranked(used)),
    ("judged", ("prompt", "first", "second", "labels"), judged),
    ("unpaired", ("prompt", "completion", "good"), lambda used, _: unpaired(used)),
)


def _guessed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The columns by the names that public data sets give them."""

    def first_of(*names: str) -> str | None:
        return next((name for name in names if name in data), None)

    asked = first_of("prompt", "instruction", "question", "messages", "conversation")
    guesses: dict[str, Any] = {
        "prompt": asked or first_of("input"),
        "chosen": first_of("chosen"),
        "rejected": first_of("rejected"),
        "margin": first_of("margin"),
        "responses": first_of("responses", "completions", "outputs", "answers"),
        "ranks": first_of("ranks", "rank"),
        "first": first_of("response1", "response_1", "output_1", "output1"),
        "second": first_of("response2", "response_2", "output_2", "output2"),
        "labels": [name for name in data if _ANNOTATOR.match(name)] or [n for n in ("label",) if n in data],
        "completion": first_of("completion", "response", "output", "answer"),
        "good": first_of("label", "good"),
        "extra": [name for name in _INPUT if name in data] if asked else [],
    }
    return {name: value for name, value in guesses.items() if value}
