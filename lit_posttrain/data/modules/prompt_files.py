"""Prompts to be answered once, by `generate` or by a callback, read from files as `PromptData` reads them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.files.folders import SUFFIXES
from lit_posttrain.data.files.own_format import in_format
from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.formats.not_conversations import no_conversation
from lit_posttrain.data.formats.prompts import PromptReader, prompt_reader
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.message_keys import Messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import PromptRecord

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SourcedPrompt(PromptRecord):
    """A prompt with its place. source: `file:line`. rest: the columns of its row that are no part of the prompt, such
    as ids and answers."""

    source: str = ""
    rest: dict[str, Any] = field(default_factory=dict)

    def row(self, **own: Any) -> dict[str, Any]:
        """A row of output: `own`, the other columns of the prompt's row, its tools and template variables. None may
        have the name of another, see `refuse_columns`."""
        around = {"tools": self.tools, "chat_template_kwargs": self.variables}
        return {**self.rest, **{name: value for name, value in around.items() if value}, **own}


def prompts_of(given: str | Sequence[str]) -> list[SourcedPrompt]:
    """User messages as prompts, or the prompts of a file, as `read_prompts` returns them."""
    return read_prompts(given) if isinstance(given, str) else [user_prompt(text) for text in given]


def read_prompts(path: str, system_prompt: str | None = None, format: str | None = None) -> list[SourcedPrompt]:
    """The prompts of a data file, a folder or a data set; of a text file (.txt) one per line. Rows without a prompt,
    such as pairs whose sides begin differently, are left out, as in training, and counted in the log. format: as in
    `TreeData`.

    Raises:
        PostTrainError: for a file that cannot be read, a row without a prompt, or no prompt at all.
    """
    place = Path(path).expanduser()
    if place.suffix.lower() == ".txt" and not place.exists():
        raise PostTrainError(f"{path}: no such file of prompts")
    if place.is_file() and not place.name.lower().endswith(SUFFIXES):
        if place.suffix.lower() not in ("", ".txt"):
            raise PostTrainError(
                f"{path}: {place.suffix} files are not read; rows are in {', '.join(SUFFIXES)} files, and a .txt file "
                "has one prompt per line"
            )
        if format is not None:
            raise PostTrainError(f"{path}: a text file has lines, and --data.format {format} reads rows; leave it out")
        found = list(_lines(path, place, system_prompt))
    else:
        audits: dict[str, FileAudit] = {}
        found = list(_records(in_format(find_sources(path), format), system_prompt, audits))
        told = [line for audit in audits.values() for line in audit.read_as()]
        if not found:
            raise PostTrainError(f"{path}: no prompts ({'; '.join(told)}); name another file")
        for line in told:
            log.warning(line)
    if not found:
        raise PostTrainError(f"{path}: no prompts; name another file")
    return found


def first_of_each_file(prompts: Iterable[SourcedPrompt]) -> list[SourcedPrompt]:
    """The first prompt of every file."""
    found: dict[str, SourcedPrompt] = {}
    for one in prompts:
        found.setdefault(one.source.rpartition(":")[0], one)
    return list(found.values())


def refuse_columns(prompts: Sequence[SourcedPrompt], names: Sequence[str]) -> None:
    """Refuse prompts whose rows have columns that the output has too (`names`): they would be overwritten.

    Raises:
        PostTrainError: naming the first one.
    """
    for one in prompts:
        for name in names:
            if one.rest.get(name) is not None:
                raise PostTrainError(f"{one.source}: the column `{name}` is also one of the output; rename it")


def user_prompt(text: str, system_prompt: str | None = None, source: str = "") -> SourcedPrompt:
    """A prompt of one user message."""
    opened = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return SourcedPrompt([*opened, {"role": "user", "content": text}], {"prompt": text}, source=source)


def with_answer(prompt: Sequence[Mapping[str, Any]], said: Mapping[str, Any]) -> Messages:
    """A conversation with the assistant's answer, which continues a prompt that ends with words of the assistant."""
    return Example.of([dict(message) for message in prompt], [dict(said)], Row({})).messages


def _records(
    sources: Sequence[Source], system_prompt: str | None, audits: dict[str, FileAudit]
) -> Iterator[SourcedPrompt]:
    # rows written by hand may differ in their columns: nothing is trained on, so that each is read by its own
    readers: dict[tuple[str, ...], PromptReader] = {}
    for source in sources:
        for record in source.records():
            columns, place = tuple(record.data), f"{record.file}:{record.line}"
            audit = audits.setdefault(record.file, FileAudit(record.file))
            row = Row(record.data)
            try:
                if record.problem is not None:  # it is left out by the format
                    raise record.problem
                reader = readers[columns] = readers.get(columns) or _reader(record, system_prompt)
                example = reader.example(row)
            except NothingToLearn as problem:
                audit.drop(problem.reason, record.line)
                continue
            except BadRow as problem:
                raise PostTrainError(f"{place}: {problem}") from problem
            audit.note(row.notes, record.line)
            audit.leave(dict.fromkeys(row.unused), record.line)
            yield SourcedPrompt(example.messages, record.data, example.tools, example.variables, place, row.rest())


def _reader(record: Record, system_prompt: str | None) -> PromptReader:
    try:
        return prompt_reader(record, system_prompt=system_prompt)
    except PostTrainError as problem:  # whose remedy is an option of training
        said = no_conversation(record.data) or (
            f"no prompt among the columns {', '.join(record.data)}; rename the one with the prompt to `prompt`, or to "
            "`messages` if it holds conversations"
        )
        raise PostTrainError(f"{record.file}:{record.line}: {said}") from problem


def _lines(path: str, place: Path, system_prompt: str | None) -> Iterator[SourcedPrompt]:
    try:
        lines = place.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise PostTrainError(f"{path}: prompts could not be read ({problem}); save the file as UTF-8") from problem
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield user_prompt(line.removesuffix("\r"), system_prompt, f"{path}:{number}")
