"""The items that are put before annotators, read from files of responses, of prompts, and of known answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.modules.items import read_items
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.errors import PostTrainError

Mode = Literal["rank", "pair", "write", "rate"]
_FEWEST: Mapping[Mode, Literal[0, 1, 2]] = {"rank": 2, "pair": 2, "rate": 1, "write": 0}
_UNDECIDED = 0.5  # share of judgements against the better one


@dataclass(frozen=True)
class Task:
    """An item. id: see `item_id`. prompt: messages. responses: objects with `text`, as in `Decision`. gold: (K,) the
    ranks that are known to be right, None for an item without a known answer. source: `file:line`. columns: the other
    columns of its row."""

    id: str
    prompt: list[dict[str, Any]]
    responses: list[dict[str, Any]]
    gold: list[int | None] | None = None
    source: str = ""
    columns: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, item: Item, gold: list[int | None] | None = None) -> Task:
        """The task of an item."""
        return cls(item.id, item.prompt, item.responses, gold, item.source, item.columns)


def read_tasks(
    data: str,
    mode: Mode,
    gold: str | None = None,
    columns: PreferenceColumns | None = None,
    format: str | None = None,
    system: str | None = None,
) -> list[Task]:
    """The items of a file, and those of a file of known answers: ranks, pairs or labels as `PreferenceData` reads them.

    Raises:
        PostTrainError: a file that cannot be read or has nothing to decide, or more responses than the mode can show.
    """
    tasks = {item.id: Task.of(item) for item in read_items(data, columns, format, system, _FEWEST[mode])}
    tasks |= {task.id: task for task in _with_known_answers(gold, system)} if gold is not None else {}
    more = [task for task in tasks.values() if mode == "pair" and len(task.responses) != 2]
    if more:
        raise PostTrainError(
            f"{more[0].source}: {len(more[0].responses)} responses, and --mode pair compares two; pass --mode rank"
        )
    return list(tasks.values())


def _with_known_answers(path: str, system: str | None) -> Iterator[Task]:
    """Raises PostTrainError where a row has no answer, or one that prefers nothing."""
    known = {f"{name}:{line}": ranks for name, line, ranks in _known_ranks(path)}
    for item in read_items(path, system=system):
        texts = known.get(item.source, {})
        ranks = [texts.get(response["text"].strip()) for response in item.responses]
        if len({rank for rank in ranks if rank is not None}) < 2:
            raise PostTrainError(
                f"{item.source}: --gold needs rows of which it is known which response is better; remove the row"
            )
        yield Task.of(item, ranks)


def _known_ranks(path: str) -> Iterator[tuple[str, int, dict[str, int]]]:
    """File, line, and the rank of each response by its text."""
    for source in find_sources(path):
        read = None
        for record in source.records():
            try:
                read = read or recognise_comparison(record)
                found = read.read(record.data)
            except NothingToLearn:  # a tie, which tells nobody apart
                continue
            except BadRow as problem:
                raise PostTrainError(f"{record.file}:{record.line}: {problem}") from problem
            ranks = {str(one.messages[-1]["content"]).strip(): int(one.labels["rank"]) for one in found.candidates}
            if max(one.labels.get("flip_prob", 0.0) for one in found.candidates) < _UNDECIDED:
                yield record.file, record.line, ranks
