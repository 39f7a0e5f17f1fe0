"""What every data module shares: files in, token trees out, held-out rows, loaders; the audit of it all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.files.names import short_names
from lit_posttrain.data.modules.built import HELD_OUT, BuiltData
from lit_posttrain.data.modules.method import (
    AsksForRows,
    LearnsFromSingles,
    NamesLimit,
    Rank,
    StepOptions,
    TokenizerOwner,
)
from lit_posttrain.data.render.options import Options
from lit_posttrain.data.store.build import build_store, held_out
from lit_posttrain.data.store.loader import AuxiliaryRows, EvalLoader, StepLoader, Trees
from lit_posttrain.data.store.mixing import Mix, check_weights, mix_sources
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import TreeBatch

DEFAULT_MAX_LENGTH = 2048


@dataclass(eq=False, repr=False)
class TreeData(BuiltData):
    """Base class of the data modules. A subclass says in `_options` how records become trees.

    Args:
        path: Training data: .jsonl, .jsonl.gz, .ndjson, .json, .parquet, .arrow, .csv or .tsv files, folders of
            them, `builtin:NAME`, or `owner/name[/config][:split]` on the Hugging Face hub. One, or a list.
        weights: For each entry of `path` how many times an epoch shows its rows: 2 shows each twice, 0.25 another
            quarter of them in every epoch, until all have been seen. Factors, not shares: the audit lists the shares
            that they make. Default: all rows once.
        val_path: Validation data, of the same kinds. Every entry is logged as a data set of its own.
        test_path: Data for `test` and `predict`. Default: `test` takes the validation data, `predict` every row of
            `path`.
        val_fraction: Share of the training rows to hold out for validation where there is no `val_path`, 0 to 1, chosen
            by a hash of a row's content: the same rows in every run, and repeated rows on the same side.
        format: A function of your own, by its import path, such as my_data.read for `read` in my_data.py. It takes a
            row, a dict, and returns one with columns that are recognised; None leaves the row out.
        system_prompt: System prompt for rows without one.
        max_length: Longest example, in tokens. Default: the model's limit, at most 2048.
        on_bad_row: A row that cannot be used: stop with an `error` that names it, or `skip` and count it.
        batch_size: Examples per optimizer step, over all micro-batches and devices.
        eval_batch_size: Examples per validation batch, over all devices.
        shuffle: Shuffle the training data anew in every epoch.
        seed: Seed of the shuffle.
        cache_dir: Folder of tokenised data. Default: $LIT_POSTTRAIN_CACHE, or ~/.cache/lit_posttrain/data.
    """

    path: str | list[str]
    _: KW_ONLY
    weights: list[float] | None = None
    val_path: str | list[str] | None = None
    test_path: str | list[str] | None = None
    val_fraction: float = 0.0
    format: str | None = None
    system_prompt: str | None = None
    max_length: int | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    batch_size: int = 16
    eval_batch_size: int = 16
    shuffle: bool = True
    seed: int = 0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if not 0.0 <= self.val_fraction < 1.0:
            raise PostTrainError(f"--data.val_fraction is {self.val_fraction}; it must be at least 0 and below 1")
        require_at_least(1, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)
        require_at_least(0, seed=self.seed)
        self.paths, self.val_paths, self.test_paths = map(_listed, (self.path, self.val_path, self.test_path))
        if not self.paths:
            raise PostTrainError("--data.path names nothing; give a file, a folder, builtin:NAME or a hub data set")
        if twice := next((p for p in self.paths if self.paths.count(p) > 1), None):
            raise PostTrainError(f"--data.path names {twice} twice; to show its rows twice, pass --data.weights")
        check_weights(self.weights, self.paths)
        self._asking: TokenizerOwner | None = None  # whose auxiliary rows these are, by the fingerprint of a store
        self._auxiliary_rows: dict[str, dict[str, AuxiliaryRows]] = {}
        self._mix: Mix | None = None
        self._built_for: tuple[int, int | None, bool, bool] | None = None
        self._scored, self._singles, self._limited_by = False, False, ""

    @abstractmethod
    def _options(self, max_length: int) -> Options:
        """How records become trees of at most `max_length` tokens."""

    # ------------------------------------------------------------------ building

    def build(
        self,
        tokenizer: Tokenizer,
        max_positions: int | None = None,
        scored: bool = False,
        limited_by: str = "the model",
        singles: bool = False,
    ) -> None:
        """Read, tokenise (or open from the cache) and audit everything, without a trainer. scored: for a reward model,
        which reads conversations as the chat template renders them. limited_by: the model that takes `max_positions`,
        for messages. singles: keep responses that are known to be good or bad and to be no better than another.

        Raises:
            PostTrainError: the data cannot be read or trained on, no row is usable, or `max_length` exceeds
                `max_positions`.
        """
        self._scored, self._singles = scored, singles
        limit = self._limit(max_positions, limited_by)
        self._limited_by = limited_by if limit == max_positions else ""
        options = self._options(limit)
        audit = self._build_training_data(tokenizer, options)
        for name, path in short_names(self.val_paths, taken={HELD_OUT}).items():
            self._val[name] = self._build_evaluation_set(path, name, tokenizer, options, audit)
        self._test = {}
        for name, path in short_names(self.test_paths, taken={HELD_OUT, *self._val}).items():
            self._test[name] = self._build_evaluation_set(path, name, tokenizer, options, audit)
        self._audit = audit
        self._built_for = (id(tokenizer), max_positions, scored, singles)

    def _build_training_data(self, tokenizer: Tokenizer, options: Options) -> AuditReport:
        whole, audit = build_store(self.paths, tokenizer, options, self.cache_dir, self.format)
        share = 0.0 if self.val_paths else self.val_fraction
        aside = held_out(whole, share)
        train = whole.select(np.flatnonzero(~aside)) if share else whole
        audit.val_fraction, audit.held_out, audit.limited_by = share, int(aside.sum()), self._limited_by
        if len(train) == 0:
            raise PostTrainError(f"{', '.join(self.paths)}: no usable row; {audit.why_empty}")
        if self.weights is not None:
            self._mix = mix_sources(train, audit, self.paths, self.weights, self.batch_size)
        self._val = {HELD_OUT: whole.select(np.flatnonzero(aside))} if audit.held_out else {}
        everything = ", ".join(self.paths)
        self._titles = {HELD_OUT: f"the rows held out of {everything}", everything: everything}
        self._whole, self._train = whole, train
        return audit

    def _build_evaluation_set(
        self, path: str, name: str, tokenizer: Tokenizer, options: Options, audit: AuditReport
    ) -> TreeStore:
        store, report = build_store([path], tokenizer, options, self.cache_dir, self.format)
        report.limited_by = self._limited_by
        if len(store) == 0:
            raise PostTrainError(f"{path}: no usable row; {report.why_empty}")
        self._titles[name] = path
        if self._train is not None:
            report.in_training = int(np.isin(store.row_hash, self._train.row_hash).sum())
        audit.validation[name] = report
        return store

    def _limit(self, max_positions: int | None, limited_by: str = "the model") -> int:
        if self.max_length is not None and self.max_length < 2:
            raise PostTrainError(f"--data.max_length is {self.max_length}; it must be at least 2")
        if self.max_length is not None and max_positions is not None and self.max_length > max_positions:
            raise PostTrainError(
                f"--data.max_length is {self.max_length} and {limited_by} takes {max_positions} positions; "
                f"pass at most {max_positions}"
            )
        return self.max_length or min(max_positions or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)

    # ------------------------------------------------------------------ Lightning

    def prepare_data(self) -> None:
        """Fill the cache, once per machine; the other processes open it in `setup`."""
        owner = self._owner()
        limited_by = owner.limited_by if isinstance(owner, NamesLimit) else "the model"
        singles = isinstance(owner, LearnsFromSingles)
        self.build(owner.tokenizer, owner.max_positions, owner.layout.tails, limited_by, singles)

    def setup(self, stage: str | None = None) -> None:
        """Open the stores, unless `prepare_data` of this process has just done so.

        Raises:
            PostTrainError: the stage has no data.
        """
        owner = self._owner()
        singles = isinstance(owner, LearnsFromSingles)
        if self._built_for != (id(owner.tokenizer), owner.max_positions, owner.layout.tails, singles):
            self.prepare_data()
        if stage in ("validate", "test") and not (self.test_stores if stage == "test" else self.val_stores):
            word, option = ("test", "test_path") if stage == "test" else ("validate", "val_path")  # stage is an enum
            raise PostTrainError(
                f"nothing to {word} on: name a file with --data.{option}, or hold rows out: --data.val_fraction 0.05"
            )

    def train_dataloader(self) -> Iterable[TreeBatch]:
        """Micro-batches of whole optimizer steps; with `overfit_batches` the same first rows in every epoch."""
        return StepLoader(
            self.train_store,
            seed=self.seed,
            shuffle=self.shuffle and not self._overfits,
            repeat=self._overfits,
            mix=self._mix,
            auxiliary=self._auxiliary(self.train_store),
            **self._step_options(),
        )

    @property
    def _overfits(self) -> bool:
        trainer: Any = self.trainer  # `overfit_batches` is set by a connector, unseen by type checkers
        return bool(trainer.overfit_batches)

    def _step_options(self) -> StepOptions:
        assert self.trainer is not None
        return {
            "batch_size": self.batch_size,
            "accumulate": self.trainer.accumulate_grad_batches,
            "layout": self._owner().layout,
            "limit": self.trainer.limit_train_batches,
            **self._rank(),
        }

    def val_dataloader(self) -> list[EvalLoader]:
        """One loader per validation set, in the order of `val_stores`."""
        return self._eval_loaders(self.val_stores)

    def test_dataloader(self) -> list[EvalLoader]:
        """One loader per test set, in the order of `test_stores`."""
        return self._eval_loaders(self.test_stores)

    def predict_dataloader(self) -> list[EvalLoader]:
        """One loader per data set, in the order of `predict_stores`."""
        return self._eval_loaders(self.predict_stores)

    def _eval_loaders(self, stores: dict[str, TreeStore]) -> list[EvalLoader]:
        layout = self._owner().layout
        return [
            EvalLoader(
                store,
                batch_size=self.eval_batch_size,
                layout=layout,
                auxiliary=self._auxiliary(store),
                **self._rank(),
            )
            for store in stores.values()
        ]

    def _asked_for(self, store: Trees) -> dict[str, AuxiliaryRows]:
        owner = self._owner()
        if not isinstance(owner, AsksForRows):
            return {}
        return owner.auxiliary_rows(store, self._limit(owner.max_positions))

    def _auxiliary(self, store: TreeStore) -> dict[str, AuxiliaryRows]:
        """The auxiliary rows that the method asks for, made once per store: log-probs of a reference are attached to
        them."""
        if self._asking is not self._owner():
            self._asking, self._auxiliary_rows = self._owner(), {}
        if store.fingerprint not in self._auxiliary_rows:
            self._auxiliary_rows[store.fingerprint] = self._asked_for(store)
        return self._auxiliary_rows[store.fingerprint]

    def _rank(self) -> Rank:
        given = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        return {"world": int(given.get("num_replicas", 1)), "rank": int(given.get("rank", 0))}


def require_at_least(least: int, **options: int) -> None:
    """Refuse options of the data module that are too small.

    Raises:
        PostTrainError: naming the first one.
    """
    for name, value in options.items():
        if value < least:
            raise PostTrainError(f"--data.{name} is {value}; it must be at least {least}")


def _listed(paths: str | Sequence[str] | None) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or [])
