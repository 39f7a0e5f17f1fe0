"""Training rows as a stream, for sets too large to be tokenised before training.

Rows are shuffled as they are read, by a buffer that a random row leaves whenever a new one comes; then they are
tokenised, a few at a time. A stream's place is how many rows of its pass have left the buffer: a resumed run reads the
pass again from its beginning up to there, without tokenising it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby, islice
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from lit_posttrain.data.audit.compared import compared
from lit_posttrain.data.audit.file_audit import unused
from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.data.render.options import Options
from lit_posttrain.data.render.trees import TreeMaker
from lit_posttrain.data.store.loader import AuxiliaryRows, StepCutter, Trees, require_same
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import RowLayout, Tree, TreeBatch

log = logging.getLogger(__name__)

_CHUNK_ROWS = 64  # rows tokenised at once
_PREVIEW_ROWS = 256


def refuse_with_stream(weights: Sequence[float] | None, val_fraction: float) -> None:
    """Refuse options that need all rows to be known.

    Raises:
        PostTrainError: naming the option.
    """
    if weights is not None:
        raise PostTrainError(
            "--data.weights multiply the rows of each source, which a stream does not count; leave them or "
            "--data.streaming out"
        )
    if val_fraction:
        raise PostTrainError(
            f"--data.val_fraction {val_fraction:g} holds rows out of all, and a stream has not read them; name a file "
            "with --data.val_path, or pass --data.val_fraction 0"
        )


def require_steps(trainer: Trainer) -> None:
    """Refuse a run on a stream that anything but the number of steps would end. One of Lightning's epochs is as long as
    the run here, so that with a limit of epochs a finished run could not be continued.

    Raises:
        PostTrainError: without a number of steps, or with a limit of epochs.
    """
    if trainer.max_steps < 1:
        raise PostTrainError(
            "--data.streaming: the number of rows of a stream is unknown; say how long to train, such as "
            "--trainer.max_steps 1000"
        )
    if trainer.max_epochs != -1:
        raise PostTrainError(
            f"max_epochs {trainer.max_epochs} with streaming: a stream has no epochs, max_steps alone ends the run; "
            "leave max_epochs out of Trainer(...)"
        )


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
        # who meets a bad row may decide to skip such rows, and go on
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


class StreamLoader:
    """Training micro-batches of a stream, as `StepLoader` yields them from a store; every rank reads the whole stream
    and takes its part of each step.

    Its length is that of the run, a single epoch for Lightning: Lightning would prefetch a batch from an unsized
    loader, and the saved place would be one too far. All steps are whole: a pass that ends within a step is followed by
    the next one.
    """

    def __init__(
        self,
        stream: TreeStream,
        *,
        batch_size: int,
        steps: int,
        accumulate: int = 1,
        world: int = 1,
        rank: int = 0,
        layout: RowLayout | None = None,
        limit: int | float = 1.0,
        check: Callable[[MemoryTrees], None] | None = None,
        auxiliary: Callable[[Trees], Mapping[str, AuxiliaryRows]] = lambda trees: {},
        together: Callable[[Callable[[], MemoryTrees]], MemoryTrees] = lambda read: read(),
    ) -> None:
        """steps: of the run. limit: as in `StepLoader`. check: refuses a step's rows that a method cannot learn from.
        auxiliary: makes those of a step. together: reads a step's rows, on all ranks or on none."""
        self.stream, self.batch_size, self.steps, self.accumulate = stream, batch_size, steps, accumulate
        self.check, self.auxiliary, self.together = check, auxiliary, together
        self.cutter = StepCutter(accumulate, world, rank, layout or RowLayout())
        self.step_trees = MemoryTrees([])
        self._end = min(limit, len(self)) if isinstance(limit, int) else int(len(self) * limit)
        # micro-batches of this epoch, and of the step at hand, that were handed out; where the step at hand begins
        self._yielded, self._part, self._start = 0, 0, stream.place()

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[TreeBatch]:
        # a generator that never asks for the end of an epoch, as in StepLoader
        if self._yielded >= self._end:
            self._yielded = 0
        if self._part == self.accumulate:
            self._part, self._start = 0, self.stream.place()
        self.stream.go_to(self._start)
        trees = iter(self.stream)

        def read() -> MemoryTrees:
            step = MemoryTrees(list(islice(trees, self.batch_size)))
            if self.check is not None:
                self.check(step)
            return step

        while True:
            self.step_trees = self.together(read)
            members, beside = np.arange(len(self.step_trees)), self.auxiliary(self.step_trees)
            for batch in self.cutter.micro_batches(self.step_trees, members, beside, self._part):
                self._yielded, self._part = self._yielded + 1, self._part + 1
                yield batch
            self._part, self._start = 0, self.stream.place()

    def _identity(self) -> dict[str, Any]:
        return {**self.stream.identity, "batch_size": self.batch_size, "accumulate": self.accumulate}

    def state_dict(self) -> dict[str, Any]:
        """Micro-batches handed out, where in the stream their step begins, and what the data was."""
        files = [source.name for source in self.stream.sources]
        yielded = 0 if self._yielded >= self._end else self._yielded
        done = self._part == self.accumulate
        start, part = (self.stream.place(), 0) if done else (self._start, self._part)
        return {"yielded": yielded, "part": part, "start": start, "files": files, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the micro-batches of `state`."""
        require_same(state, self._identity(), [source.name for source in self.stream.sources])
        self._yielded, self._part, self._start = state["yielded"], state["part"], state["start"]
