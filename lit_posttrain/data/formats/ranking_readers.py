"""Readers of prompts with a list of ranked responses, and the parts of which readers of published sets are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lit_posttrain.data.formats.comparison import Candidate, Comparison
from lit_posttrain.data.formats.comparison_readers import asked
from lit_posttrain.data.formats.ranks import ranks_of, ranks_of_scores
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.message_keys import REASONING, Messages
from lit_posttrain.data.rows.messages import by_message
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import conversation
from lit_posttrain.data.rows.values import as_json, kind

_TEXT_OF_RESPONSE = ("text", "content", "response", "completion", "output", "answer")
NOT_RANKED = "with responses that were not rated, which are left out"


def ranked(columns: Mapping[str, Any]) -> Callable[[Row], Comparison]:
    """A reader of rows with a list of ranked responses: objects with text and rank (0 or 1 is the best, equal ranks are
    ties), or strings beside a list of ranks.

    columns: names of `prompt` and `responses`, and of `ranks` and `scores` or None.
    """

    def read(row: Row) -> Comparison:
        name = str(columns["responses"])
        given = listed(row, name)
        prompt, said = answers(row, columns, name, given)
        if not columns["labelled"]:
            return Comparison(prompt, [Candidate(m) for m in said])
        if len(given) < 2:
            raise BadRow("one response", f"`{name}` has {len(given)} responses; a comparison needs two or more")
        ranks = [r.get("rank") if isinstance(r, dict) else None for r in given]
        if column := columns["ranks"]:
            ranks = _parsed(row[column], column)
        elif column := columns["scores"]:
            ranks = ranks_of_scores(_parsed(row[column], column), column)
        elif all(rank is None for rank in ranks):
            raise BadRow(
                "no ranks",
                f"the responses in `{name}` have no ranks; write objects with text and rank, or name a column with a "
                "list of ranks with --data.columns.ranks, or with one of scores with --data.columns.scores",
            )
        found = zip(said, ranks_of(ranks, len(given)), strict=True)
        return Comparison(prompt, [Candidate(messages, {"rank": rank}) for messages, rank in found])

    return read


def listed(row: Row, column: str) -> list[str | dict[str, Any]]:
    """The responses in a column: a list of strings or objects, or its JSON text.

    Raises:
        BadRow: the column holds something else.
    """
    given = _parsed(row[column], column)
    if not isinstance(given, list) or not all(isinstance(r, (str, dict)) for r in given):
        raise BadRow("wrong type", f"`{column}` is {kind(given)}, not a list of responses; mend it")
    return given


def answers(
    row: Row,
    columns: Mapping[str, Any],
    column: str,
    given: Sequence[str | dict[str, Any]],
    used: Sequence[str] = (),
) -> tuple[Messages, list[Messages]]:
    """The prompt of a row, and what each of its listed responses says after it. columns: names of the `prompt` and of
    the `extra` columns that are added to it. column: that of the responses. used: keys of the responses, beside their
    text and rank, that the reader uses itself.

    Raises:
        BadRow: a response has no text, or begins with another prompt.
        NothingToLearn: a response is empty.
    """
    places = [f"{column}[{i}]" for i in range(len(given))]
    said = [_response(one, place, column, row, used) for one, place in zip(given, places, strict=True)]
    return asked(row, columns, said, places)


def by_rank(row: Row, prompt: Messages, said: Sequence[Messages], ranks: Sequence[float | None]) -> Comparison:
    """Responses with ranks of any numbers, (K,) the lowest is the best and equal ones are ties. None is a response that
    was not ranked: it is left out.

    Raises:
        NothingToLearn: fewer than two responses have ranks, or all ranks are the same.
    """
    found = [(messages, rank) for messages, rank in zip(said, ranks, strict=True) if rank is not None]
    if len(found) < 2:
        told = f"{len(found)} of {len(said)} responses are rated: nothing to compare; remove the row"
        raise NothingToLearn("fewer than two rated responses", told)
    order = sorted({rank for _, rank in found})
    if len(order) == 1:
        raise NothingToLearn("all tied", "every response has the same rank: no preference; remove the row")
    if len(found) < len(said):
        row.notes.append(NOT_RANKED)
    return Comparison(prompt, [Candidate(messages, {"rank": float(order.index(rank))}) for messages, rank in found])


def _parsed(value: Any, column: str) -> Any:
    """A list, or the JSON text of one, as in a CSV file."""
    return as_json(value, column) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _response(response: str | dict[str, Any], where: str, column: str, row: Row, used: Sequence[str] = ()) -> Messages:
    """A response of a list: a string, or an object with its text or messages, under one of several names."""
    if isinstance(response, str):
        return conversation(response, where, row.notes)
    found = next((name for name in _TEXT_OF_RESPONSE if response.get(name) is not None), None)
    if found is None and not response.get("tool_calls"):
        raise BadRow("no text", f"{where} has none of {', '.join(_TEXT_OF_RESPONSE)}; mend it")
    value = "" if found is None else by_message(response[found])
    more = {key: response[key] for key in ("tool_calls", *REASONING) if response.get(key)}
    alone = isinstance(value, str)
    if alone and more:
        value = [{"role": "assistant", "content": value, **more}]
    read = {found, "rank", "role", *(more if alone else ()), *used}
    row.unused += [f"{column}[].{key}" for key, part in response.items() if part is not None and key not in read]
    return conversation(value, where, row.notes)
