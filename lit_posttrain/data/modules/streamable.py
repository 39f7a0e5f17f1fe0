"""A data module whose training rows may be read as training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.files.own_format import in_format
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.modules.base import TreeData, require_at_least
from lit_posttrain.data.modules.method import ChecksRows
from lit_posttrain.data.render.options import Options
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.data.store.stream_loader import StreamLoader, refuse_with_stream, require_steps
from lit_posttrain.data.store.streaming import TreeStream
from lit_posttrain.distributed import together
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import TreeBatch

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False, repr=False)
class StreamableData(TreeData):
    """Base class of the data modules with `streaming`.

    Args:
        streaming: Read the training data as training goes on instead of tokenising it all before: for sets too large
            for that, on the hub without storing them. Needs --trainer.max_steps, and --data.val_path or no validation;
            several files are read one after another, in an order drawn anew in every pass. A row that cannot be used is
            found when it is reached. A resumed run reads the pass again up to its place.
        shuffle_buffer: With streaming: among how many rows the next one is drawn.
    """

    streaming: bool = False
    shuffle_buffer: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, shuffle_buffer=self.shuffle_buffer)
        if self.streaming:
            refuse_with_stream(self.weights, 0.0 if self.val_path else self.val_fraction)
        self._stream: Callable[[], TreeStream] | None = None
        self._stream_loader: StreamLoader | None = None

    def _build_training_data(self, tokenizer: Tokenizer, options: Options) -> AuditReport:
        if not self.streaming:
            return super()._build_training_data(tokenizer, options)
        found = [source for path in self.paths for source in find_sources(path, streaming=True)]
        sources = [options.prepared(source) for source in in_format(found, self.format)]
        self._stream = partial(
            TreeStream,
            sources,
            tokenizer,
            options,
            shuffle=self.shuffle,
            buffer=self.shuffle_buffer,
            seed=self.seed,
            quiet=self._rank()["rank"] > 0,
        )
        self._val, self._titles = {}, {}
        return self._stream().preview()

    def setup(self, stage: str | None = None) -> None:
        """Open the data.

        Raises:
            PostTrainError: also for a stream without a number of steps, or to predict on.
        """
        super().setup(stage)
        if stage == "fit" and self.streaming and self.trainer is not None:
            require_steps(self.trainer)
        if stage == "predict" and self.streaming and not self.test_stores:
            raise PostTrainError("nothing to predict on: a stream is for training; name a file with --data.test_path")

    @property
    def train_store(self) -> TreeStore:
        """The training examples.

        Raises:
            PostTrainError: for a stream, whose rows are not known, and before `build`.
        """
        if self.streaming:
            raise PostTrainError("--data.streaming: the rows are not known beforehand; leave it out")
        return super().train_store

    @property
    def known_stores(self) -> list[TreeStore]:
        """The training and validation sets whose rows are known before training: not those of a stream."""
        return list(self.val_stores.values()) if self.streaming else super().known_stores

    def row_sources(self, rows: list[int]) -> list[str]:
        """`file:line` of training rows (`TreeBatch.example_ids`), of a stream those of the current step."""
        if self._stream_loader is not None:
            return self._stream_loader.step_trees.sources(rows)
        return super().row_sources(rows)

    def train_dataloader(self) -> Iterable[TreeBatch]:
        """Micro-batches of whole optimizer steps.

        Raises:
            PostTrainError: for `overfit_batches` with a stream, which does not begin again.
        """
        if self._stream is None:
            return super().train_dataloader()
        if self._overfits:
            raise PostTrainError("--trainer.overfit_batches: a stream does not begin again; leave --data.streaming out")
        assert self.trainer is not None
        owner = self._owner()
        self._stream_loader = StreamLoader(
            self._stream(),
            steps=self.trainer.max_steps,
            check=owner.check_store if isinstance(owner, ChecksRows) else None,
            auxiliary=self._asked_for,
            together=partial(together, self.trainer),
            **self._step_options(),
        )
        return self._stream_loader

    def teardown(self, stage: str) -> None:
        """Say what a stream has dropped and altered: the audit covers its first rows alone."""
        loader = self._stream_loader
        if stage == "fit" and loader is not None and not loader.stream.quiet and (found := loader.stream.findings()):
            log.warning("of %d rows of the stream, each counted in every pass: %s", loader.stream.counts["rows"], found)
