"""Training rows as a stream, for sets too large to be tokenised before training.

Rows are shuffled as they are read, by a buffer that a random row leaves whenever a new one comes; then they are
tokenised, a few at a time. A stream's place is how many rows of its pass have left the buffer: a resumed run reads the
pass again from its beginning up to there, without tokenising it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any

import numpy as np

from lit_posttrain.data.audit.compared import compared
from lit_posttrain.data.audit.file_audit import unused
from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.data.render.options import Options
from lit_posttrain.data.render.trees import TreeMaker
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import Tree

log = logging.getLogger(__name__)

_CHUNK_ROWS = 64  # rows tokenised at once
_PREVIEW_ROWS = 256


class TreeStream:
    """The trees of sources, pass after pass without an end.

    counts: rows of the chunks taken so far, and of them the dropped and altered ones by reason.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        options: Options,
        *,
        shuffle: bool,
        buffer: int,
        seed: int,
        quiet: bool = False,
    ) -> None:
        """shuffle: draw each row among the next `buffer` ones, and the order of the sources anew in every pass. quiet:
        leave it to another process to say what is dropped."""
        self.sources, self.tokenizer, self.options = sources, tokenizer, options
        self.shuffle, self.buffer, self.seed, self.quiet = shuffle, buffer, seed, quiet
        self.maker = TreeMaker([source.name for source in sources], tokenizer, options)
        self.counts: dict[str, int] = {"rows": 0}
        # of the chunk at hand: the pass, its rows before it, its trees that were handed out, the counts before it
        self._pass, self._row, self._used, self._before = 0, 0, 0, dict(self.counts)

    def __iter__(self) -> Iterator[Tree]:
        """The trees from the stream's place on.

        Raises:
            PostTrainError: for a row that cannot be read or used, or a pass without a usable one.
        """
        while True:
            found = self._row > 0
            records = islice(self._shuffled(self._pass), self._row, None)
            while chunk := list(islice(records, _CHUNK_ROWS)):
                self._before = dict(self.counts)
                trees = self._trees(chunk)
                found = found or bool(trees)
                for tree in trees[self._used :]:
                    self._used += 1
                    yield tree
                self._row, self._used = self._row + len(chunk), 0
                self._before = dict(self.counts)
            if not found:
                raise PostTrainError(f"{self._names()}: no usable row; {self.findings() or 'none read'}")
            self._pass, self._row = self._pass + 1, 0

    def preview(self) -> AuditReport:
        """The audit of the first rows of all sources, in their order.

        Raises:
            PostTrainError: for a source whose columns are not recognised, or a row among the first that is unusable.
        """
        maker = TreeMaker([source.name for source in self.sources], self.tokenizer, self.options)
        for index, source in enumerate(self.sources):  # not only when its turn comes, hours later
            readable = (record for record in source.records(bad=maker.skips) if record.problem is None)
            if first := next(readable, None):
                maker.look(index, first)
        records = islice(self._in_order(range(len(self.sources)), maker), _PREVIEW_ROWS)
        trees = MemoryTrees(_made(maker, list(records)))
        place = {audit.name: index for index, audit in enumerate(maker.audits)}
        origin = np.array([place[trees.files[k]] for k in trees.file_index], dtype=np.int64)
        columns = {"file_index": origin, "lines": trees.lines, **trees.units}
        report = maker.report(columns, compared(trees.responses()))
        report.files = [audit for audit in report.files if audit.rows] or report.files[:1]
        report.first_rows = report.total.rows
        report.left_out = [source.beside for source in self.sources if source.beside]
        report.read_by = next((source.by for source in self.sources), "")
        return report

    def findings(self) -> str:
        """What was dropped and altered, in words; empty for nothing."""
        used = {unused(key) for key in self.maker.keys.used}  # which a later row may have shown
        told = {reason: count for reason, count in self.counts.items() if reason != "rows" and reason not in used}
        return ", ".join(f"{count:,} {reason}" for reason, count in told.items())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the rows and their order, as far as it is known without reading all of them."""
        # of files their sizes, so that they may be moved; what has no files is known by its name alone
        kinds = [
            [[file.stat().st_size for file in source.files] or source.name, source.part] for source in self.sources
        ]
        # may be changed after a bad row, to go on without it
        options = repr(replace(self.options, on_bad_row="error"))
        kind = {"options": options, "template": self.tokenizer.chat_template, "sources": kinds}
        kind["tokenizer"] = self.maker.mask.backend.to_str()
        digest = hashlib.blake2b(json.dumps(kind).encode(), digest_size=16).hexdigest()
        order = {"seed": self.seed, "shuffle": self.shuffle, "shuffle_buffer": self.buffer}
        return {"streaming": True, "data": digest, **order}

    def place(self) -> dict[str, Any]:
        """Where the stream is."""
        return {"pass": self._pass, "row": self._row, "used": self._used, "counts": dict(self._before)}

    def go_to(self, place: dict[str, Any]) -> None:
        """Continue from `place`."""
        self._pass, self._row, self._used = place["pass"], place["row"], place["used"]
        self.counts = dict(place["counts"])
        self._before = dict(self.counts)

    def _names(self) -> str:
        names = [source.name for source in self.sources]
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    def _in_order(self, sources: Sequence[int], maker: TreeMaker) -> Iterator[tuple[int, Record]]:
        for index in sources:
            for record in self.sources[index].records(bad=maker.skips):
                if record.problem is None:
                    maker.look(index, record)
                yield index, record

    def _shuffled(self, number: int) -> Iterator[tuple[int, Record]]:
        """The records of a pass, and the place of their source: a function of seed and pass alone."""
        if not self.shuffle:
            yield from self._in_order(range(len(self.sources)), self.maker)
            return
        random = np.random.default_rng((self.seed, number))
        waiting: list[tuple[int, Record]] = []
        for found in self._in_order(random.permutation(len(self.sources)).tolist(), self.maker):
            if len(waiting) < self.buffer:
                waiting.append(found)
                continue
            chosen = int(random.integers(self.buffer))
            yield waiting[chosen]
            waiting[chosen] = found
        for chosen in random.permutation(len(waiting)).tolist():
            yield waiting[chosen]

    def _trees(self, chunk: Sequence[tuple[int, Record]]) -> list[Tree]:
        trees = _made(self.maker, chunk)
        self.counts["rows"] += len(chunk)
        for index in {index for index, _ in chunk}:
            audit = self.maker.audits[index]
            for reason, tally in audit.dropped.items():
                before, now = self.counts.get(reason, 0), self.counts.get(reason, 0) + tally.count
                doubled = before.bit_length() < now.bit_length()  # the first, the second, the fourth, ...
                if doubled and not self.quiet:
                    log.warning("%s:%d: dropped, %s (%d so far)", audit.name, tally.lines[0], reason, now)
            for reason, count in audit.findings().items():
                self.counts[reason] = self.counts.get(reason, 0) + count
            audit.forget()
        return trees


def _made(maker: TreeMaker, chunk: Sequence[tuple[int, Record]]) -> list[Tree]:
    items = [item for index, record in chunk for item in maker.items(index, record)]
    alike = [list(group) for _, group in groupby(items, key=lambda item: item.plain)]
    return [tree for group in alike for tree, _ in maker.trees(group, maker.encode(group))]
