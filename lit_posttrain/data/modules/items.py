"""Items for people and judges: prompts with responses, from any file that `generate` writes or `PreferenceData`
reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.files.own_format import in_format
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.formats.comparison import Candidate, Comparison
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.formats.neighbours import joined
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.beside import VARIABLES
from lit_posttrain.data.rows.kinds import COMPARED
from lit_posttrain.data.rows.message_keys import MARK, NOTES, REASONING, UNUSED
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError

log = logging.getLogger(__name__)

_ORIGIN = ("model", "sampling")
_SOME_EQUAL = "with equal responses, of which one is kept"
# columns that name the models of two responses, in the order of the responses
_MODELS = (("chosen_model", "rejected_model"), ("model_a", "model_b"), ("response_0_source", "response_1_source"))


def read_items(
    path: str,
    columns: PreferenceColumns | None = None,
    format: str | None = None,
    system: str | None = None,
    at_least: Literal[0, 1, 2] = 2,
) -> list[Item]:
    """The items of a file, a folder or a data set, in order, each once. Labels and ranks are not looked at: they are
    among the columns. What cannot be judged (equal responses, an empty one, several turns) is left out, and told by
    reason in the log.

    columns, format: as in `PreferenceData`. system: system prompt for prompts without one. at_least: how many different
    responses an item has; 1 reads prompts with one response and conversations too, 0 prompts alone.

    Raises:
        PostTrainError: a file that cannot be read, a row of another kind, or no item at all.
    """
    items: dict[str, Item] = {}
    audits: dict[str, FileAudit] = {}
    for source in in_format(find_sources(path), format):
        source = joined(source) if at_least == 2 else source
        readers: dict[tuple[str, ...], _Reader] = {}  # rows written by hand may differ in their columns
        for record in source.records():
            audit = audits.setdefault(record.file, FileAudit(record.file))
            try:
                if record.problem is not None:
                    raise record.problem
                names = tuple(record.data)
                reader = readers[names] = readers.get(names) or _Reader(record, columns, system, at_least)
                item = reader.item(record, audit)
                if item.id in items:
                    raise NothingToLearn("an item that came before", f"the same item as {items[item.id].source}")
                items[item.id] = item
            except NothingToLearn as problem:
                audit.drop(problem.reason, record.line)
            except BadRow as problem:
                raise PostTrainError(f"{record.file}:{record.line}: {problem}") from problem
    told = [line.replace(": dropped, ", ": left out, ") for audit in audits.values() for line in audit.read_as()]
    if not items:
        raise PostTrainError(f"{path}: nothing to judge ({'; '.join(told)}); name another file")
    for line in told:
        log.warning(line)
    return list(items.values())


class _Reader:
    """Reads rows with the same columns."""

    def __init__(self, record: Record, columns: PreferenceColumns | None, system: str | None, at_least: int) -> None:
        self.system, self.at_least = system, at_least
        self.read = self._shape(record, columns)

    def _shape(self, record: Record, columns: PreferenceColumns | None) -> Callable[[Row], Comparison]:
        """How rows are read: as compared responses, or if fewer are enough as a conversation, or as a prompt."""
        try:
            compared = recognise_comparison(record, columns, labelled=False)
            return lambda row: compared.read(row, self.system)
        except PostTrainError as problem:
            if self.at_least == 2:
                raise
            first = problem
        with suppress(PostTrainError):
            marked = recognise_comparison(record, columns)
            return lambda row: marked.read(row, self.system)
        if columns is not None:  # which name what a conversation or a prompt does not have
            raise first
        try:
            whole = recognise(record)
            return lambda row: _parted(whole.example(row, self.system, marks=False))
        except PostTrainError:
            if self.at_least == 1:
                raise
        asked = prompt_reader(record, system_prompt=self.system)
        return lambda row: _parted(asked.example(row))

    def item(self, record: Record, audit: FileAudit) -> Item:
        row = Row(record.data)
        found = self.read(row)
        responses = [_response(candidate) for candidate in found.candidates]
        for response, origin in zip(responses, _origins(record.data, len(responses)), strict=True):
            response.update(origin)
        different: dict[tuple[Any, ...], dict[str, Any]] = {}
        for one in responses:
            different.setdefault((one["text"].strip(), one.get("reasoning_content")), one)
        kept = list(different.values())
        if len(kept) < min(self.at_least, len(responses)):
            raise NothingToLearn("equal responses", "all responses are the same: nothing to compare")
        if len(kept) < self.at_least:
            raise NothingToLearn("one response", f"{len(kept)} responses, where {self.at_least} are to be compared")
        audit.note([*row.notes, *[_SOME_EQUAL] * (len(kept) < len(responses))], record.line)
        beside = {"tools": found.around.get("tools"), VARIABLES: found.around.get("variables")}
        others = {**row.rest(), **{name: value for name, value in beside.items() if value}}
        return Item([_bare(m) for m in found.prompt], kept, others, f"{record.file}:{record.line}")


def _parted(example: Example) -> Comparison:
    """A conversation as a prompt with its last response, or with none."""
    if not example.messages:
        raise BadRow("plain text", "plain text without a prompt: there is nothing to judge; give it a prompt")
    turns, at = example.messages, len(example.messages)
    while at and turns[at - 1]["role"] == "assistant":
        at -= 1
    around = {"tools": example.tools, "variables": example.variables}
    return Comparison(turns[:at], [Candidate(turns[at:])] if turns[at:] else [], around)


def _response(candidate: Candidate) -> dict[str, Any]:
    if len(candidate.messages) != 1 or candidate.messages[0].get("tool_calls"):
        raise NothingToLearn("several turns", "a response of several turns, or with tool calls, is not judged")
    (said,) = candidate.messages
    thought = next((said[key] for key in REASONING if said.get(key)), None)
    return {"text": said["content"], **({"reasoning_content": thought} if thought else {})}


def _origins(data: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """What a row says of where each of its responses comes from."""
    for name in COMPARED["responses"]:
        given = data.get(name)
        if isinstance(given, list) and len(given) == count and all(isinstance(one, dict) for one in given):
            return [{key: one[key] for key in _ORIGIN if one.get(key)} for one in given]
    models = next(([data[n] for n in names] for names in _MODELS if count == 2 and set(names) <= set(data)), None)
    models = data.get("model_name", data.get("models")) if models is None else models
    if isinstance(models, list) and len(models) == count and all(isinstance(one, str) for one in models):
        return [{"model": one} for one in models]
    return [{} for _ in range(count)]


def _bare(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in (MARK, UNUSED, NOTES)}
