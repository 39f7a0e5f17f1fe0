"""Epochs that show the rows of several sources in chosen numbers.

Every source is dealt like a deck of cards: each of its rows comes once before any comes again, over the whole run, and
a deck that is used up is shuffled anew. An epoch deals `weight` times as many rows as the source has, and the sources
are spread evenly over it, so that every optimizer step has about its share of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.audit.figures import Share
from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError

Rows = NDArray[np.int64]


def check_weights(weights: Sequence[float] | None, paths: Sequence[str]) -> None:
    """Require one weight per path, none below zero.

    Raises:
        PostTrainError: for anything else.
    """
    if weights is None:
        return
    if len(weights) != len(paths):
        raise PostTrainError(
            f"--data.weights has {len(weights)} numbers and --data.path {len(paths)} entries; give one weight per entry"
        )
    if any(weight < 0 or not math.isfinite(weight) for weight in weights):
        raise PostTrainError(
            f"--data.weights is {_listed(weights)}; a weight says how many times an epoch shows a source's rows: 0 or "
            "more"
        )
    if not any(weights):
        raise PostTrainError("--data.weights is 0 for every source, which leaves nothing to train on; raise one")


class Mix:
    """How often an epoch shows the rows of each source.

    rows: per source the rows (n_i,) it has. shown: per source how many an epoch shows, `round(weight * n_i)`, but at
    least one where the weight is not 0.
    """

    def __init__(self, origin: Rows, weights: Sequence[float], batch_size: int) -> None:
        """origin (n,): the source of every row, as a place in `weights`. batch_size: rows of a step. No row comes twice
        in one, if its source has at least three times the rows that it gives to a step."""
        self.weights, self.batch_size = list(weights), batch_size
        self.rows: list[Rows] = [np.flatnonzero(origin == source) for source in range(len(weights))]
        self.shown = [
            max(round(weight * len(rows)), 1) if weight and len(rows) else 0
            for weight, rows in zip(weights, self.rows, strict=True)
        ]

    def __len__(self) -> int:
        return sum(self.shown)

    @property
    def identity(self) -> str:
        """What decides the order, apart from the rows and the seed."""
        return ", ".join(f"{weight:g} x {len(rows)} rows" for weight, rows in zip(self.weights, self.rows, strict=True))

    def order(self, seed: int, epoch: int, shuffle: bool = True) -> Rows:
        """(len,) the rows of an epoch."""
        used = [source for source, shown in enumerate(self.shown) if shown]
        dealt = np.concatenate([self._dealt(source, seed, epoch, shuffle) for source in used])
        places = np.concatenate([(np.arange(self.shown[source]) + 0.5) / self.shown[source] for source in used])
        return dealt[np.argsort(places, kind="stable")]

    def _dealt(self, source: int, seed: int, epoch: int, shuffle: bool) -> Rows:
        """The rows of a source that an epoch shows: those that follow what the epochs before have shown."""
        rows, shown = self.rows[source], self.shown[source]
        deck, start = divmod(epoch * shown, len(rows))
        decks = range(deck, deck + -(-(start + shown) // len(rows)))
        cards = [self._deck(source, seed, number) if shuffle else np.arange(len(rows)) for number in decks]
        return rows[np.concatenate(cards)[start : start + shown]]

    def _deck(self, source: int, seed: int, number: int) -> Rows:
        size = len(self.rows[source])
        cards = _shuffled(seed, source, number, size)
        # A step may take the end of one deck and the beginning of the next: the last rows of the one are kept out of
        # the first rows of the other. With a third at most, that moves none of the last rows, which the next deck asks
        # for.
        in_a_step = -(-self.shown[source] * (self.batch_size + len(self.rows)) // len(self))
        near = min(in_a_step, size // 3)
        if number == 0 or near == 0:
            return cards
        late = np.isin(cards, _shuffled(seed, source, number - 1, size)[-near:])
        first = np.flatnonzero(~late)[:near]
        return np.concatenate([cards[first], np.delete(cards, first)])


def mix_sources(
    train: TreeStore, audit: AuditReport, paths: Sequence[str], weights: Sequence[float], batch_size: int
) -> Mix:
    """The mix of the training rows by the entry of `paths` under which each was found; its shares go into the audit.

    Raises:
        PostTrainError: if a file is found twice, or no row is left.
    """
    names = [file.name for file in audit.files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise PostTrainError(f"{twice} is found twice in --data.path; name it once, with a larger weight")
    entry = np.array([paths.index(file.path) for file in audit.files], dtype=np.int64)
    mix = Mix(entry[train.file_index], weights, batch_size)
    if len(mix) == 0:
        raise PostTrainError(
            f"--data.weights {_listed(weights)}: the sources with a weight have no usable row; raise another one"
        )
    tokens = [
        float(train.units["tokens"][rows].mean()) * shown if shown else 0.0
        for rows, shown in zip(mix.rows, mix.shown, strict=True)
    ]
    audit.mix = [
        Share(path, weight, len(rows), shown, shown / len(mix), counted / sum(tokens))
        for path, weight, rows, shown, counted in zip(paths, weights, mix.rows, mix.shown, tokens, strict=True)
    ]
    return mix


def _shuffled(seed: int, source: int, number: int, size: int) -> Rows:
    return np.random.default_rng((seed, source, number)).permutation(size)


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)
