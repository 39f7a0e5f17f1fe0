"""Recognise the columns of preference data, and choose the reader that turns its records into comparisons.

The columns of a file's first record decide, as for conversations; later records are checked against them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.feedback.lines import is_record
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.columns import ColumnsBeside, check_needs, require_columns
from lit_posttrain.data.formats.comparison import Comparison
from lit_posttrain.data.formats.comparison_readers import Annotators, judged, paired, unpaired, unpaired_whole
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.not_conversations import no_conversation
from lit_posttrain.data.formats.published import published
from lit_posttrain.data.formats.ranking_readers import ranked
from lit_posttrain.data.formats.records import recorded
from lit_posttrain.data.rows.beside import Beside, refuse_media, refuse_unwanted
from lit_posttrain.data.rows.kinds import PROMPT, asks, guessed, is_whole, label_values, tokens
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.votes import Votes, Winner
from lit_posttrain.errors import PostTrainError

_Read = Callable[[Row], Comparison]
_COUNTS_FROM_0 = re.compile(r"(?<!\d)0$")


@dataclass(frozen=True)
class ComparisonFormat:
    """How the records of one file become comparisons. `name` is what the audit calls it."""

    name: str
    needs: tuple[str, ...]
    shape: _Read
    system: str | None = None
    tools: str | None = None
    labelled: bool = True
    votes: Votes | None = None

    def read(self, data: Mapping[str, Any], system_prompt: str | None = None) -> Comparison:
        """The comparison in a record, with tools and variables; `system_prompt` is put before a prompt without one.

        Raises:
            BadRow: a column is missing or has the wrong type.
            NothingToLearn: the record has no preference, or is marked as not to be trained on.
        """
        row = Row.of(data)
        check_needs(self.needs, row)
        if self.labelled:
            refuse_unwanted(row)
        found = self.shape(row)
        refuse_media(row)
        beside = Beside.named(self.system, self.tools, system_prompt)
        found.prompt = beside.opened(row, found.prompt)
        found.around = beside.around(row)
        return found


@dataclass
class PreferenceColumns(ColumnsBeside):
    """Names of the columns to use where they are not recognised by themselves.

    Args:
        prompt: Column with the prompt: a string, a transcript, or a list of messages.
        chosen: Column with the preferred response. Needs `rejected`.
        rejected: Column with the other response.
        margin: Column that says by how much a response is better; reward models ask for that much. Of judged pairs it
            may be below 0 for the second one. Of chosen and rejected also a list of two columns, their scores.
        responses: Column with a list of responses: strings, or objects with text and rank. Needs `prompt`.
        ranks: Column with a list of ranks, where `responses` holds strings; lowest is best, equal ones are ties.
        scores: Column with a list of scores instead of ranks; highest is best, equal ones are ties.
        first: Column with one of two judged responses. Needs `second` and `labels`, and `prompt` unless both columns
            hold whole conversations.
        second: Column with the other one.
        labels: Columns with the judgements, one for every annotator: 1, 2, or 0 for a tie, or what
            `--data.label_values` says.
        completion: Column with a single response, or a conversation that ends with it. Needs `good`, and `prompt` where
            it is no conversation.
        good: Column that marks the single response as good (true) or bad (false).
    """

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    margin: str | list[str] | None = None
    responses: str | None = None
    ranks: str | None = None
    scores: str | None = None
    first: str | None = None
    second: str | None = None
    labels: list[str] | None = None
    completion: str | None = None
    good: str | None = None


def recognise_comparison(
    record: Record,
    columns: PreferenceColumns | None = None,
    annotators: Annotators = "soft",
    labelled: bool = True,
    values: Mapping[str, Winner] | None = None,
    singles: bool = False,
) -> ComparisonFormat:
    """Decide by the columns of a file's first record, or by the columns that the user named. labelled: False for
    responses that are still to be compared: they keep the record's order, whatever its labels and ranks. values: what
    the labels of judged pairs mean, if not 1, 2 and 0 for a tie. singles: of decisions that reject responses, keep
    which responses are good or bad in place of their order.

    Raises:
        PostTrainError: a named column does not exist, or the columns are not recognised.
    """
    data, named = Row(record.data), columns or PreferenceColumns()
    if is_record(record.data) and named == PreferenceColumns():
        return ComparisonFormat("decisions", (), recorded(labelled, annotators, singles), labelled=labelled)
    require_columns(record, named)
    if named.ranks and re.search("rating|score", named.ranks, re.IGNORECASE):
        raise PostTrainError(
            f"{record.file}: --data.columns.ranks {named.ranks}: the lowest rank is the best, and the highest score: "
            f"pass --data.columns.scores {named.ranks}"
        )
    around = {"system": named.system, "tools": named.tools}
    wanted = {name: value for name, value in vars(named).items() if value is not None and name not in around}
    if not wanted and (known := published(record.data)):
        needs = (*known.columns, *(column for column in around.values() if column))
        read = known.reader(labelled)
        return ComparisonFormat("/".join(known.columns), needs, read, **around, labelled=labelled, votes=None)
    guesses = guessed(data, named.good)
    if named_ones := set(wanted) - {"prompt"}:  # the user says what is compared; the rest of that shape is guessed
        shapes = [{*needs, *_OPTIONAL.get(name, ())} for name, needs, _ in _SHAPES]
        kept = {"prompt", "extra", "judges"}.union(*(shape for shape in shapes if shape & named_ones))
        guesses = {name: column for name, column in guesses.items() if name in kept}
    for one, other in (("ranks", "scores"), ("scores", "ranks")):
        if one in wanted:
            guesses.pop(other, None)
    found = {**guesses, **wanted}
    if isinstance(named.margin, list) and (len(named.margin) != 2 or not {"chosen", "rejected"} <= set(found)):
        told = "name one column, or beside chosen and rejected responses the two with their scores"
        raise PostTrainError(f"{record.file}: --data.columns.margin {', '.join(named.margin)}: {told}")
    answer = named.completion
    if answer and not named.prompt and found.get("prompt") in (None, answer) and is_whole(data[answer]):
        found["conversation"] = found.pop("completion")  # whose last turns are the response
    for name, needs, make in _SHAPES:
        needs = tuple(need for need in needs if labelled or need != "labels")
        if name == "judged" and "prompt" not in needs and not is_whole(data.get(str(found.get("first")))):
            continue
        if set(needs) <= set(found) and (labelled or name != "unpaired"):
            used = {key: found.get(key) for key in (*needs, *_OPTIONAL.get(name, ()))}
            needed = [c for value in used.values() if value for c in (value if isinstance(value, list) else [value])]
            votes = _votes(record, found, "labels" in wanted, values) if used.get("labels") else None
            read = make(
                {**used, "extra": [] if named.prompt else found.get("extra", []), "labelled": labelled, "votes": votes},
                annotators,
            )
            needs = (*needed, *(column for column in around.values() if column))
            return ComparisonFormat("/".join(needed), needs, read, **around, labelled=labelled, votes=votes)
    raise PostTrainError(f"{record.file}:{record.line}: {_unrecognised(record, found, labelled)}")


def _votes(record: Record, found: Mapping[str, Any], named: bool, values: Mapping[str, Winner] | None) -> Votes:
    """What the labels of judged pairs mean. named: True if the user named their columns.

    Raises:
        PostTrainError: several columns may be the labels, or nothing says which response a label prefers.
    """
    where, judges = f"{record.file}:{record.line}", found.get("judges", [])
    if not named and len(judges) > 1:
        lists = [f"'[{', '.join(columns)}]'" for columns in judges]
        raise PostTrainError(
            f"{where}: {' and '.join(', '.join(columns) for columns in judges)} may all say which response is better; "
            f"name what does with --data.columns.labels {' or '.join(lists)}"
        )
    published = label_values(found)
    if not values and published is None and any(_COUNTS_FROM_0.search(found[side]) for side in ("first", "second")):
        raise PostTrainError(
            f"{where}: `{found['first']}` and `{found['second']}` count from 0, and labels may count from 0 or 1; say "
            f"what {', '.join(found['labels'])} means with --data.label_values '{{0: first, 1: second}}' or "
            "'{1: first, 0: second}' or '{1: first, 2: second, 0: tie}'"
        )
    return Votes(found["labels"], values or None, published)


def _unrecognised(record: Record, found: Mapping[str, Any], labelled: bool) -> str:
    """The error for unknown columns, with the remedy: what the nearest kind lacks, or the config for SFT."""
    data = record.data
    for shape, needs, _ in _SHAPES:
        if any(sign in found for sign in _SIGNS.get(shape, ())):
            there = ", ".join(_named(need, found[need]) for need in needs if need in found)
            lacking = [need for need in needs if need not in found and (labelled or need != "labels")]
            close = difflib.get_close_matches(lacking[0], data, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else f" (the columns are {', '.join(data)})"
            spelled = {"labels": "'[NAME]'"}
            options = " ".join(f"--data.columns.{name} {spelled.get(name, 'NAME')}" for name in lacking)
            return f"beside {there} preferences need {' and '.join(lacking)}: {options}{hint}"
    with suppress(PostTrainError):
        name = recognise(record).name
        return (
            f"not preferences but conversations ({name}): configs/sft.yaml learns from those; preferences have chosen "
            "and rejected, ranked responses, or a label of good and bad ones (--data.columns.good NAME)"
        )
    if other := tokens(data):
        return f"not preferences but {other}"
    remedy = (
        "--data.columns.prompt X --data.columns.chosen Y --data.columns.rejected Z (or columns.responses, "
        "columns.first/second/labels, columns.completion/good)"
    )
    if other := asks(data):
        alone = f"not preferences but {other}"
        rest = [name for name in data if name not in PROMPT]
        if len([name for name in rest if isinstance(data[name], str)]) > 1:  # as two responses and a label are
            prompt = next(name for name in PROMPT if name in data)
            return (
                f"a prompt ({prompt}), and no column known as a response; name which of {', '.join(rest)} are "
                f"responses with {remedy}"
            )
        return alone if len(data) == 1 else f"{alone}; if one of {', '.join(data)} is a response, name it with {remedy}"
    if said := no_conversation(data):
        return said
    known = {name.lower(): name for name in data}
    near = guessed({name: data[known[name]] for name in known})
    if {"chosen", "rejected"} <= set(near):
        sides = [(side, known[near[side]]) for side in ("prompt", "chosen", "rejected") if side in near]
        remedy = " ".join(f"--data.columns.{side} {column}" for side, column in sides)
    return f"columns not recognised as preferences: {', '.join(data)}; name them with {remedy}"


def _named(need: str, column: object) -> str:
    """A column, and its usual name if that is another one."""
    shown = ", ".join(column) if isinstance(column, list) else str(column)
    return need if shown == need else f"{need} ({shown})"


_SIGNS = {"pair": ("chosen", "rejected"), "ranking": ("responses",), "judged": ("first", "second")}
_OPTIONAL = {"pair": ("prompt", "margin"), "ranking": ("ranks", "scores"), "judged": ("prompt", "margin")}
_SHAPES: tuple[tuple[str, tuple[str, ...], Callable[[Any, Annotators], _Read]], ...] = (
    ("pair", ("chosen", "rejected"), lambda used, _: paired(used)),
    ("ranking", ("prompt", "responses"), lambda used, _: ranked(used)),
    ("judged", ("prompt", "first", "second", "labels"), judged),
    ("judged", ("first", "second", "labels"), judged),  # of whole conversations
    ("unpaired", ("prompt", "completion", "good"), lambda used, _: unpaired(used)),
    ("unpaired", ("conversation", "good"), lambda used, _: unpaired_whole(used)),
)
