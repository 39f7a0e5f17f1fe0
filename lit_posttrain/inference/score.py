"""Scores of responses in files, by a restored reward model."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.files.source import Record, Source
from lit_posttrain.data.files.sources import read_records
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.example import Labelled
from lit_posttrain.data.modules.preference import ComparisonReader
from lit_posttrain.data.render.options import Reader
from lit_posttrain.data.render.overlong import Fitted, fit_comparison
from lit_posttrain.data.render.rendered import TrainOn
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.store.build import build_store
from lit_posttrain.data.store.loader import EvalLoader
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.methods.reward import RewardModel
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.restore import restore
from lit_posttrain.types import Tree

_NOT_KNOWN: Any = object()
_SCORED = ("completion", "chosen", "rejected", "responses")


@dataclass(frozen=True)
class ScoreOptions:
    """Turns rows into trees to score: comparisons without their labels, or whole conversations."""

    max_length: int
    system: str | None = None
    columns: PreferenceColumns | None = None
    train_on: TrainOn = "completion"
    overlong: str = "drop"
    on_bad_row: Literal["error", "skip"] = "skip"
    whole_text: bool = True
    scored: bool = True

    def prepared(self, source: Source) -> Source:
        """As it is."""
        return source

    def reader(self, record: Record) -> Reader:
        """A reader for columns of preference data, or else of conversations."""
        named = self.columns or PreferenceColumns()
        chosen = {name for name, value in vars(named).items() if value is not None}
        try:
            return ComparisonReader(recognise_comparison(record, named, labelled=False), self.system)
        except PostTrainError:
            if chosen - {"prompt", "completion", "system", "tools"}:
                raise
        try:
            return _Conversation(recognise(record, _as_columns(named)), self.system)
        except PostTrainError as problem:
            if chosen:
                raise
            slips = {
                name: difflib.get_close_matches(name, record.data, n=1) for name in _SCORED if name not in record.data
            }
            meant = " ".join(f"(did you mean --columns.{name} {close[0]}?)" for name, close in slips.items() if close)
            raise PostTrainError(
                f"{record.file}:{record.line}: nothing to score among the columns {', '.join(record.data)}"
                f"{meant and ' '}{meant}; name a prompt with "
                "--columns.prompt X, and what to score with --columns.completion Y, --columns.chosen Y "
                "--columns.rejected Z, --columns.responses Y, or --columns.first Y --columns.second Z"
            ) from problem

    def fit(self, tree: Tree) -> Fitted:
        """Leave out what is too long for the model, and cut nothing."""
        return fit_comparison(tree, self.max_length, "drop")


def _as_columns(named: PreferenceColumns) -> Columns:
    return Columns(named.prompt, named.completion, system=named.system, tools=named.tools)


@dataclass(frozen=True)
class _Conversation:
    shape: Any
    system: str | None
    doubt: str = ""

    @property
    def name(self) -> str:
        return str(self.shape.name)

    def read(self, data: Mapping[str, Any]) -> Labelled:
        row = Row(data)
        example = self.shape.example(row, self.system, marks=False)
        example.untrained = frozenset()  # which is about training
        said = [turn for turn, message in enumerate(example.messages) if message["role"] == "assistant"]
        if said:  # one score, behind the last turn: a template that rewrites earlier ones would give one a turn
            example.prompt_turns = said[-1]
        return Labelled([example], [{}], unread=row.unread, notes=row.notes)


class ResponseScorer:
    """A reward model folder, run folder or checkpoint that scores the responses of files."""

    def __init__(
        self,
        path: str,
        batch_size: int = 16,
        trust_remote_code: bool = False,
        system: str | None = None,
        bfloat16: bool = False,
        columns: PreferenceColumns | None = None,
        format: str | None = None,
    ) -> None:
        """
        Args:
            path: The reward model.
            batch_size: Rows per batch.
            trust_remote_code: Run Python code that comes with a hub model.
            system: System prompt for rows that bring none.
            bfloat16: Compute in bfloat16: faster on most hardware, and different in the third digit.
            columns: Names of the columns, where they are not recognised.
            format: As in `TreeData`.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.restored = restore(path, trust_remote_code, self.device)
        self.model = self.restored.scorer
        self.system, self.bfloat16, self.columns, self.format = system, bfloat16, columns, format
        self.batch_size = batch_size

    def score_file(self, path: str, cache_dir: str | None = None) -> Iterator[tuple[Record, list[float] | None]]:
        """Every row of a file (what a format returns for it) with the scores of its responses, in their order; None if
        there are none.

        Raises:
            PostTrainError: as `read`.
        """
        store, _ = self.read(path, cache_dir)
        yield from self.scored(path, store)

    def read(self, path: str, cache_dir: str | None = None) -> tuple[TreeStore, AuditReport]:
        """(trees to score, audit of the file).

        Raises:
            PostTrainError: for a file of which no row can be scored.
        """
        limit = max_positions(self.model.config)
        options = ScoreOptions(limit or 1_000_000, self.system, self.columns)
        store, audit = build_store([path], self.restored.tokenizer, options, cache_dir, self.format)
        if not len(store):
            found = [(file.where(tally), reason) for file in audit.files for reason, tally in file.dropped.items()]
            told = "; ".join(f"{where}: {reason}" for where, reason in found)
            raise PostTrainError(f"{path}: no row can be scored ({told}); mend the rows, or name other columns")
        return store, audit

    def scored(
        self, path: str, store: TreeStore, known: Sequence[list[float] | None] = ()
    ) -> Iterator[tuple[Record, list[float] | None]]:
        """Yields the records of a file with their scores, batch by batch. known: scores of the first ones."""
        found = self._scores(store, sum(scores is not None for scores in known))
        place, scores = next(found, (None, None))
        before = iter(known)
        for record in read_records(path, self.format):
            given = next(before, _NOT_KNOWN)
            if given is not _NOT_KNOWN:
                yield record, given
            elif place == (record.file, record.line):
                yield record, scores
                place, scores = next(found, (None, None))
            else:
                yield record, None

    def _scores(self, store: TreeStore, done: int) -> Iterator[tuple[tuple[str, int], list[float]]]:
        """((file, line), scores) of every scored row, in the file's order, without the first `done`."""
        layout = RewardModel.layout_for(self.restored.layout)
        batches = iter(EvalLoader(store, batch_size=self.batch_size, layout=layout))
        skipped, again = divmod(done, self.batch_size)  # in the batches of before, for the same numbers
        for batch in islice(batches, skipped, None):
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                found = self.model(batch.to(self.device)).tolist()
            scores: list[list[float]] = [[] for _ in batch.example_ids]
            for tree, score in zip(batch.response_tree.tolist(), found, strict=True):
                scores[tree].append(score)
            own = [(store.files[store.file_index[row]], int(store.lines[row])) for row in batch.example_ids]
            yield from list(zip(own, scores, strict=True))[again:]
            again = 0
