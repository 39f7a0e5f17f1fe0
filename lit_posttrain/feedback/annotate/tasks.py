"""The items that are put before annotators, read from files of responses, of prompts, and of known answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.formats.comparisons import ComparisonFormat, PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.neighbours import joined
from lit_posttrain.data.modules.items import read_items
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.feedback.agreement.read import ranked

Mode = Literal["rank", "pair", "write", "rate"]
_FEWEST: Mapping[Mode, Literal[0, 1, 2]] = {"rank": 2, "pair": 2, "rate": 1, "write": 0}
_UNDECIDED = 0.5  # probability that the first of two responses is better


@dataclass(frozen=True)
class Task(Item):
    """An item for annotators. gold: (K,) the ranks that are known to be right, None for an item without a known
    answer."""

    gold: list[int | None] | None = None

    @classmethod
    def of(cls, item: Item, gold: list[int | None] | None = None) -> Task:
        """The task of an item."""
        return cls(item.prompt, item.responses, item.columns, item.source, gold)


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
    items = {item.source: item for item in read_items(path, system=system)}
    for source in map(joined, find_sources(path)):
        readers: dict[tuple[str, ...], ComparisonFormat] = {}  # rows written by hand may differ in their columns
        for record in source.records():
            if (item := items.get(f"{record.file}:{record.line}")) is None:  # it is left out, and told
                continue
            try:
                names = tuple(record.data)
                readers[names] = readers.get(names) or recognise_comparison(record)
                probability, ranks = ranked(record, item, readers[names])
            except BadRow as problem:
                raise PostTrainError(f"{item.source}: {problem}") from problem
            if probability == _UNDECIDED or len({rank for rank in ranks or [] if rank is not None}) < 2:
                raise PostTrainError(
                    f"{item.source}: --gold needs rows of which it is known which response is better; remove the row"
                )
            yield Task.of(item, ranks)
