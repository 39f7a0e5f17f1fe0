"""Prompts of files with responses: on-policy methods and `generate` ask the same prompts that SFT and preference
methods train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.columns import check_needs
from lit_posttrain.data.formats.comparisons import ComparisonFormat, recognise_comparison
from lit_posttrain.data.formats.conversation_readers import Parts
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.beside import THOUGHT_COLUMNS
from lit_posttrain.data.rows.kinds import compared, guessed
from lit_posttrain.data.rows.message_keys import Messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError

Prompt = Messages
ReadPrompt = Callable[[Row], Prompt]


@dataclass(frozen=True)
class Learned:
    """A file with responses, as the method reads it that trains on them: its name, its columns, and a reader of its
    prompts."""

    name: str
    needs: tuple[str, ...]
    read: ReadPrompt

    def prompt(self, column: str | None, alone: ReadPrompt | None = None) -> ReadPrompt:
        """The prompt as that method reads it: responses may begin with more turns than the prompt's column has. The
        responses themselves count as unread: they are not part of the prompt. column: the prompt's, if there is one.
        alone: its reader, for rows with unusable responses."""
        answers = {*self.needs, *THOUGHT_COLUMNS} - {column}

        def read(row: Row) -> Prompt:
            inner = row.aside()
            try:
                check_needs(self.needs, row)
                found = self.read(inner)
            except BadRow as problem:
                if alone is None or problem.reason == "two prompts":
                    raise
                return alone(row)
            for name in inner.read - answers:
                row[name]
            row.notes += inner.notes
            row.unused += inner.unused
            return found

        return read


def learned_prompts(record: Record, column: str | None) -> Learned | None:
    """How preference methods or SFT read a file, by its first record; None if neither does. column: the prompt's."""
    with suppress(PostTrainError):
        if column is None or not _are_answers(record.data):
            return _of_preferences(recognise_comparison(record, labelled=False))
    with suppress(PostTrainError):
        whole = recognise(record)
        if whole.needs[0] == column:
            return Learned(whole.name, whole.needs, lambda row: _before_answer(whole.read(row), row))
    with suppress(PostTrainError):
        shape = compared(Row(record.data))
        if column and shape and shape[0] == "unpaired":
            return _of_preferences(recognise_comparison(record))
    return None


def _of_preferences(known: ComparisonFormat) -> Learned:
    def read(row: Row) -> Prompt:
        return known.shape(row).prompt

    return Learned(known.name, known.needs, read)


def _before_answer(parts: Parts, row: Row) -> Prompt:
    """The turns before the first one that is trained on.

    Raises:
        BadRow: prompt and answer are plain texts: the prompt may be a transcript, which SFT does not take apart.
    """
    asked = [*parts.prompt, *takewhile(lambda message: message["role"] != "assistant", parts.response)]
    texts = [row.peek(column) for column in row.read]
    if len(asked) == 1 and asked[0]["content"] in texts and parts.response[-1]["content"] in texts:
        raise BadRow("two texts", "prompt and answer are texts, and no turns stand before the answer")
    return asked


def _are_answers(data: Mapping[str, Any]) -> bool:
    """True if a list of texts without ranks or scores holds right answers, for a reward, rather than responses of
    models."""
    found = guessed(data)
    given = data.get(found.get("responses", ""))
    texts = isinstance(given, str) or (isinstance(given, list) and all(isinstance(part, str) for part in given))
    return texts and {"ranks", "scores", "chosen", "first"}.isdisjoint(found)
