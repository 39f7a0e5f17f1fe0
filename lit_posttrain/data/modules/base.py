"""What every data module shares: files in, token trees out, held-out rows, loaders; the audit of it all."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import LightningDataModule

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.render.trees import Options
from lit_posttrain.data.store.build import build_store, held_out
from lit_posttrain.data.store.loader import Companions, EvalLoader, StepLoader, Trees
from lit_posttrain.data.store.mixing import Mix, check_weights, mix_sources
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.data.store.streaming import StreamLoader, TreeStream, refuse_with_stream, require_steps
from lit_posttrain.distributed import together
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import RowLayout

log = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048
HELD_OUT = "held_out"


@runtime_checkable
class TokenizerOwner(Protocol):
    """What a data module needs of the LightningModule it feeds.

    tokenizer: a fast Hugging Face tokenizer, with or without a chat template. max_positions: the longest sequence the
    model takes, None for no limit. layout: how trees become rows.
    """

    @property
    def tokenizer(self) -> Any: ...
    @property
    def max_positions(self) -> int | None: ...
    @property
    def layout(self) -> RowLayout: ...


class TreeData(LightningDataModule):
    """Base class of the data modules. A subclass says in `_options` how records become trees."""

    def __init__(
        self,
        path: str | list[str],
        val_path: str | list[str] | None,
        test_path: str | list[str] | None,
        val_fraction: float,
        max_length: int | None,
        batch_size: int,
        eval_batch_size: int,
        shuffle: bool,
        seed: int,
        cache_dir: str | None,
        *,
        weights: list[float] | None = None,
        streaming: bool = False,
        shuffle_buffer: int = 1000,
    ) -> None:
        """The arguments are those of `ConversationData`."""
        super().__init__()
        if not 0.0 <= val_fraction < 1.0:
            raise PostTrainError(f"--data.val_fraction is {val_fraction}; it must be at least 0 and below 1")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "shuffle_buffer": shuffle_buffer}
        for name, size in sizes.items():
            if size < 1:
                raise PostTrainError(f"--data.{name} is {size}; it must be at least 1")
        self.paths, self.val_paths, self.test_paths = _listed(path), _listed(val_path), _listed(test_path)
        if not self.paths:
            raise PostTrainError("--data.path names nothing; give a file, a folder, builtin:NAME or a hub data set")
        if twice := next((p for p in self.paths if self.paths.count(p) > 1), None):
            raise PostTrainError(f"--data.path names {twice} twice; to show its rows twice, pass --data.weights")
        if seed < 0:
            raise PostTrainError(f"--data.seed is {seed}; it must be at least 0")
        check_weights(weights, self.paths)
        if streaming:
            refuse_with_stream(weights, 0.0 if val_path else val_fraction)
        self.weights, self.streaming, self.shuffle_buffer = weights, streaming, shuffle_buffer
        self.val_fraction, self.max_length = val_fraction, max_length
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.shuffle, self.seed, self.cache_dir = shuffle, seed, cache_dir
        self._stream: Callable[[], TreeStream] | None = None
        self._stream_loader: StreamLoader | None = None
        self._whole: TreeStore | None = None
        self._places: dict[str, str] = {}  # what the data sets to measure on are, by name, in words
        self._train: TreeStore | None = None
        self._mix: Mix | None = None
        self._val: dict[str, TreeStore] = {}
        self._test: dict[str, TreeStore] = {}
        self._audit: AuditReport | None = None
        self._built_for: tuple[int, int | None, bool] | None = None
        self._scored = False

    def _options(self, max_length: int) -> Options:
        """How records become trees of at most `max_length` tokens."""
        raise NotImplementedError

    # ------------------------------------------------------------------ building

    def build(self, tokenizer: Any, max_positions: int | None = None, scored: bool = False) -> None:
        """Read, tokenise (or open from the cache) and audit everything, without a trainer. scored: for a reward model,
        which reads conversations as the chat template renders them.

        Raises:
            PostTrainError: data that cannot be read or trained on, no usable row, or a `max_length` beyond
                `max_positions`.
        """
        self._scored = scored
        options = self._options(self._limit(max_positions))
        audit = self._build_stream(tokenizer, options) if self.streaming else self._build_rows(tokenizer, options)
        for name, path in _named(self.val_paths, taken={HELD_OUT}).items():
            self._val[name] = self._extra(path, name, tokenizer, options, audit)
        self._test = {}
        for name, path in _named(self.test_paths, taken={HELD_OUT, *self._val}).items():
            self._test[name] = self._extra(path, name, tokenizer, options, audit)
        self._audit = audit
        self._built_for = (id(tokenizer), max_positions, scored)

    def _build_rows(self, tokenizer: Any, options: Options) -> AuditReport:
        whole, audit = build_store(self.paths, tokenizer, options, self.cache_dir)
        share = 0.0 if self.val_paths else self.val_fraction
        aside = held_out(whole, share)
        train = whole.select(np.flatnonzero(~aside)) if share else whole
        audit.val_fraction, audit.held_out = share, int(aside.sum())
        if len(train) == 0:
            raise PostTrainError(f"{', '.join(self.paths)}: no usable row; {_why_empty(audit)}")
        if self.weights is not None:
            self._mix = mix_sources(train, audit, self.paths, self.weights, self.batch_size)
        self._val = {HELD_OUT: whole.select(np.flatnonzero(aside))} if audit.held_out else {}
        everything = ", ".join(self.paths)
        self._places = {HELD_OUT: f"the rows held out of {everything}", everything: everything}
        self._whole, self._train = whole, train
        return audit

    def _build_stream(self, tokenizer: Any, options: Options) -> AuditReport:
        sources = [source for path in self.paths for source in find_sources(path, streaming=True)]
        self._stream = partial(
            TreeStream,
            sources,
            tokenizer,
            options,
            shuffle=self.shuffle,
            buffer=self.shuffle_buffer,
            seed=self.seed,
            quiet=self._place()["rank"] > 0,
        )
        self._val, self._places = {}, {}
        return self._stream().preview()

    def _extra(self, path: str, name: str, tokenizer: Any, options: Options, audit: AuditReport) -> TreeStore:
        store, report = build_store([path], tokenizer, options, self.cache_dir)
        if len(store) == 0:
            raise PostTrainError(f"{path}: no usable row; {_why_empty(report)}")
        self._places[name] = path
        if self._train is not None:
            report.in_training = int(np.isin(store.row_hash, self._train.row_hash).sum())
        audit.validation[name] = report
        return store

    def _limit(self, max_positions: int | None) -> int:
        if self.max_length is not None and self.max_length < 2:
            raise PostTrainError(f"--data.max_length is {self.max_length}; it must be at least 2")
        if self.max_length is not None and max_positions is not None and self.max_length > max_positions:
            raise PostTrainError(
                f"--data.max_length is {self.max_length} and the model takes {max_positions} positions: a sequence "
                f"longer than the model; pass at most {max_positions}"
            )
        return self.max_length or min(max_positions or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)

    # ------------------------------------------------------------------ Lightning

    def prepare_data(self) -> None:
        """Fill the cache, once per machine; the other processes open it in `setup`."""
        owner = self._owner()
        self.build(owner.tokenizer, owner.max_positions, owner.layout.tails)

    def setup(self, stage: str | None = None) -> None:
        """Open the stores, unless `prepare_data` of this process has just done so.

        Raises:
            PostTrainError: for a stage that has nothing to work on.
        """
        owner = self._owner()
        if self._built_for != (id(owner.tokenizer), owner.max_positions, owner.layout.tails):
            self.prepare_data()
        if stage == "fit" and self.streaming and self.trainer is not None:
            require_steps(self.trainer)
        if stage == "predict" and self.streaming and not self.test_stores:
            raise PostTrainError("nothing to predict on: a stream is for training; name a file with --data.test_path")
        if stage in ("validate", "test") and not (self.test_stores if stage == "test" else self.val_stores):
            word, option = ("test", "test_path") if stage == "test" else ("validate", "val_path")  # stage is an enum
            raise PostTrainError(
                f"nothing to {word} on: name a file with --data.{option}, or hold rows out: --data.val_fraction 0.05"
            )

    def _owner(self) -> TokenizerOwner:
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, TokenizerOwner):
            raise PostTrainError(
                f"{type(self).__name__} needs a module with `tokenizer`, `max_positions` and `layout`, and has "
                f"{type(module).__name__}; train a lit_posttrain method, or call build(tokenizer, max_positions)"
            )
        return module

    @property
    def train_store(self) -> TreeStore:
        """The training trees.

        Raises:
            PostTrainError: before `build`, and for a stream, whose trees are not known.
        """
        if self.streaming:
            raise PostTrainError("--data.streaming: the rows are not known beforehand; leave it out")
        if self._train is None:
            raise PostTrainError("the data has not been read yet; call build(tokenizer, max_positions) first")
        return self._train

    @property
    def val_stores(self) -> dict[str, TreeStore]:
        """Validation sets by name: one per entry of `val_path`, or `held_out`."""
        return self._val

    @property
    def test_stores(self) -> dict[str, TreeStore]:
        """Test sets by name; the validation sets where no `test_path` was given."""
        return self._test or self._val

    @property
    def predict_stores(self) -> dict[str, TreeStore]:
        """What `predict` works on, by name: the test sets, or where no `test_path` was given all of `path`."""
        return self._test or ({", ".join(self.paths): self._whole} if self._whole is not None else {})

    @property
    def val_names(self) -> list[str]:
        """What the metrics of each validation set are called, in the order of `val_dataloader`."""
        return list(self.val_stores)

    @property
    def test_names(self) -> list[str]:
        """What the metrics of each test set are called, in the order of `test_dataloader`."""
        return list(self.test_stores)

    def row_sources(self, rows: list[int]) -> list[str]:
        """`file:line` of training rows (`TreeBatch.example_ids`), for messages to people."""
        if self._stream_loader is not None:
            return self._stream_loader.step_trees.sources(rows)
        return self.train_store.sources(rows)

    def predicted_row_sources(self, rows: list[int], dataloader_idx: int) -> list[str]:
        """`file:line` of rows of a data set, by its place in `predict_dataloader`."""
        return list(self.predict_stores.values())[dataloader_idx].sources(rows)

    def evaluated_texts(self, row: int, dataloader_idx: int) -> tuple[str, str, list[str]]:
        """A row of a validation set, by its place in `val_dataloader`: `file:line`, its prompt and its responses as the
        model sees them, without special tokens."""
        tree, tokenizer = list(self.val_stores.values())[dataloader_idx][row], self._owner().tokenizer
        sides = [tree.prompt, *(response.tokens for response in tree.responses)]
        prompt, *responses = [tokenizer.decode(side.tolist(), skip_special_tokens=True).strip() for side in sides]
        return tree.source, prompt, responses

    def example_prompts(self, count: int) -> list[list[int]]:
        """At most `count` prompts (token ids), spread over the first validation set, without one over the training
        rows unless they are a stream; rows without a prompt are left out."""
        store = next(iter(self.val_stores.values()), None) or self._train
        if store is None:
            return []
        asked = np.flatnonzero(store.prompt_lengths)
        count = min(count, len(asked))
        return [store[int(asked[place * len(asked) // count])].prompt.tolist() for place in range(count)]

    def evaluated_rows(self, stage: str) -> dict[str, int]:
        """Number of conversations of each data set that `validate`, `test` or `predict` works on, by its name."""
        stores = {"validate": self.val_stores, "test": self.test_stores, "predict": self.predict_stores}[stage]
        return {self._places[name]: len(store) for name, store in stores.items()}

    @property
    def audit(self) -> AuditReport:
        """What became of every row."""
        if self._audit is None:
            raise PostTrainError("the data has not been read yet; call build(tokenizer, max_positions) first")
        return self._audit

    def train_dataloader(self) -> StepLoader | StreamLoader:
        """Micro-batches of whole optimizer steps; with `overfit_batches` the same first rows in every epoch.

        Raises:
            PostTrainError: for `overfit_batches` with a stream, which does not begin again.
        """
        trainer: Any = self.trainer  # `overfit_batches` is set by a connector, unseen by type checkers
        overfits = bool(trainer.overfit_batches)
        how: dict[str, Any] = {
            "batch_size": self.batch_size,
            "accumulate": trainer.accumulate_grad_batches,
            "layout": self._owner().layout,
            "limit": trainer.limit_train_batches,
            **self._place(),
        }
        if self._stream is not None:
            if overfits:
                raise PostTrainError(
                    "--trainer.overfit_batches: a stream does not begin again; leave --data.streaming out"
                )
            check = getattr(self._owner(), "check_store", None)
            self._stream_loader = StreamLoader(
                self._stream(),
                steps=trainer.max_steps,
                check=check,
                companions=self._companions,
                together=partial(together, trainer),
                **how,
            )
            return self._stream_loader
        beside = self._companions(self.train_store)
        return StepLoader(
            self.train_store,
            seed=self.seed,
            shuffle=self.shuffle and not overfits,
            repeat=overfits,
            mix=self._mix,
            companions=beside,
            **how,
        )

    def teardown(self, stage: str) -> None:
        """Say what a stream has dropped and altered: an audit has seen its first rows alone."""
        loader = self._stream_loader
        if stage == "fit" and loader is not None and not loader.stream.quiet and (found := loader.stream.findings()):
            log.warning("of %d rows of the stream, each counted in every pass: %s", loader.stream.counts["rows"], found)

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
                companions=self._companions(store),
                **self._place(),
            )
            for store in stores.values()
        ]

    def _companions(self, store: Trees) -> Companions | None:
        """What a method wants to see beside the rows of a store; nothing by default."""
        return None

    def _place(self) -> dict[str, int]:
        given = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        return {"world": int(given.get("num_replicas", 1)), "rank": int(given.get("rank", 0))}


def _listed(paths: str | Sequence[str] | None) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths or [])


def _named(paths: Sequence[str], taken: set[str]) -> dict[str, str]:
    """A short unique name per path: its stem, with its folder or a number where that is taken."""
    named: dict[str, str] = {}
    for path in paths:
        place = Path(re.sub(r"^builtin:|:[^/:]*$", "", path))
        stem = place.name.split(".")[0] or "data"
        candidates = [stem, f"{place.parent.name}_{stem}", *(f"{stem}_{n}" for n in range(2, len(paths) + 3))]
        name = next(c for c in candidates if c not in taken and c not in named and not c.startswith("_"))
        named[name] = path
    return named


def _why_empty(audit: AuditReport) -> str:
    reasons = [
        f"{tally.count} {reason} ({file.where(tally)})"
        for file in audit.files
        for reason, tally in file.dropped.items()
    ]
    if audit.held_out:
        reasons.append(f"{audit.held_out} held out by val_fraction {audit.val_fraction:g}")
    advice = ["raise --data.max_length"] if any("max_length" in reason for reason in reasons) else []
    if audit.held_out:
        advice.append("pass --data.val_fraction 0, or --data.val_path")
    return "; ".join([f"of {audit.total.rows} rows: " + (", ".join(reasons) or "none kept"), *advice])
