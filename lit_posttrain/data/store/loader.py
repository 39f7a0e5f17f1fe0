"""Loaders that plan whole optimizer steps, so that every micro-batch carries the denominators of its step.

`batch_size` counts conversations (trees) per *optimizer step*. How a step is cut into micro-batches and ranks is the
trainer's business and changes neither the loss nor the gradient.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.store.mixing import Mix
from lit_posttrain.data.store.packing import collate, split_step
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import RowLayout, Tree, TreeBatch


class Trees(Protocol):
    """A data set as loaders and methods need it: a `TreeStore`, or one step of a stream."""

    @property
    def lengths(self) -> NDArray[np.int64]: ...
    @property
    def units(self) -> Mapping[str, NDArray[np.int64]]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def files(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Tree: ...
    def says(self, label: str) -> bool:
        """True if a response has a label of this name that is not 0."""
        ...

    def sources(self, rows: Sequence[int]) -> list[str]:
        """`file:line` of trees."""
        ...


def step_denominators(store: Trees, members: Sequence[int] | NDArray[np.int64]) -> dict[str, float]:
    """The denominators of a step of these trees, over all micro-batches and ranks."""
    return {name: float(column[members].sum()) for name, column in store.units.items()}


class AuxiliaryRows(Protocol):
    """Per-row auxiliary trees that are not trained on, such as KTO's pairs for the KL term."""

    def __getitem__(self, index: int) -> Tree: ...


@dataclass(frozen=True)
class StepCutter:
    """Cuts optimizer steps into `accumulate` micro-batches for each of `world` ranks."""

    accumulate: int
    world: int
    rank: int
    layout: RowLayout

    def micro_batches(
        self,
        store: Trees,
        members: NDArray[np.int64],
        auxiliary: Mapping[str, AuxiliaryRows] | None = None,
        skip: int = 0,
        denominators: Mapping[str, float] | None = None,
    ) -> Iterator[TreeBatch]:
        """This rank's micro-batches of the step of trees `members`, from number `skip` on; the first has the auxiliary
        rows of the whole step. denominators: the step's denominators, where it has more than these trees."""
        denominators = step_denominators(store, members) if denominators is None else denominators
        parts = self._parts(store.lengths[members], members)
        for number, chosen in enumerate(parts[skip:]):
            batch = self._collate(store, chosen, denominators)
            if number == 0:
                batch.extras = {
                    name: [self._collate(beside, rows, {}) for rows in parts]
                    for name, beside in (auxiliary or {}).items()
                }
            yield batch

    def _collate(self, trees: AuxiliaryRows, chosen: list[int], denominators: Mapping[str, float]) -> TreeBatch:
        return collate([trees[i] for i in chosen], self.layout, denominators, chosen)

    def _parts(self, lengths: NDArray[np.int64], members: NDArray[np.int64]) -> list[list[int]]:
        """The rows of this rank's micro-batches."""
        parts = split_step(lengths, self.accumulate * self.world)
        # neighbouring parts hold like lengths: the ranks of one micro-batch finish together
        return [members[parts[index * self.world + self.rank]].tolist() for index in range(self.accumulate)]


class StepLoader:
    """Training micro-batches, `accumulate` per optimizer step on each of `world` ranks.

    The order is a function of (seed, epoch) alone. `state_dict` says how many micro-batches have been handed out, so
    a run resumes in the middle of an epoch. A last, smaller step is kept. limit: `Trainer.limit_train_batches`, which
    says where Lightning leaves an epoch. repeat: True if every epoch has the order of the first. mix: how often an
    epoch shows the rows of each source; by default every row once. auxiliary: by name rows
    beside those of the store; the first micro-batch of a step has those of the whole step as its extras.

    Raises:
        PostTrainError: when a checkpoint's state belongs to other data, another batch size or another accumulation.
    """

    def __init__(
        self,
        store: Trees,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        accumulate: int = 1,
        world: int = 1,
        rank: int = 0,
        layout: RowLayout | None = None,
        limit: int | float = 1.0,
        repeat: bool = False,
        mix: Mix | None = None,
        auxiliary: Mapping[str, AuxiliaryRows] | None = None,
    ) -> None:
        if len(store) == 0:
            raise PostTrainError("the training data has no usable rows; `lit-posttrain audit` says why")
        if batch_size < 1:
            raise PostTrainError(f"--data.batch_size is {batch_size}; it must be at least 1")
        self.store, self.batch_size, self.seed, self.shuffle = store, batch_size, seed, shuffle
        self.accumulate, self.repeat = accumulate, repeat
        self.cutter = StepCutter(accumulate, world, rank, layout or RowLayout())
        self.mix, self.auxiliary = mix, auxiliary
        self.steps = -(-len(store if mix is None else mix) // batch_size)
        # the micro-batches of an epoch as Lightning counts them
        self._end = min(limit, len(self)) if isinstance(limit, int) else int(len(self) * limit)
        self._epoch = 0
        self._yielded = 0

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[TreeBatch]:
        # A generator: Lightning calls iter() more than once before it takes the first batch. It never asks for the
        # StopIteration behind an epoch's last batch either, so the next epoch begins here.
        if self._yielded >= self._end:
            self._epoch, self._yielded = self._epoch + 1, 0
        step, skip = divmod(self._yielded, self.accumulate)
        order = self._order(0 if self.repeat else self._epoch)
        while step < self.steps:
            members = order[step * self.batch_size : (step + 1) * self.batch_size]
            for batch in self.cutter.micro_batches(self.store, members, self.auxiliary, skip):
                self._yielded += 1
                yield batch
            step, skip = step + 1, 0

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self.mix is not None:
            return self.mix.order(self.seed, epoch, self.shuffle)
        if not self.shuffle:
            return np.arange(len(self.store))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.store))

    def _identity(self) -> dict[str, Any]:
        return {
            "streaming": False,
            "data": self.store.fingerprint,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "weights": self.mix and self.mix.identity,
        }

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the number of micro-batches handed out in it, and what identifies the data."""
        epoch, yielded = self._epoch, self._yielded
        if yielded >= self._end:
            epoch, yielded = epoch + 1, 0
        return {"epoch": epoch, "yielded": yielded, "files": located(self.store.files), **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the micro-batches of `state`."""
        require_same(state, self._identity(), self.store.files)
        self._epoch, self._yielded = int(state["epoch"]), int(state["yielded"])


def require_same(state: Mapping[str, Any], identity: Mapping[str, Any], files: Sequence[str]) -> None:
    """Refuse a loader's state that belongs to other data or settings. files: of this run.

    Raises:
        PostTrainError: naming the difference.
    """
    for key, now in identity.items():
        saved = state.get(key, False if key == "streaming" else None)  # which an older checkpoint may lack
        if saved == now:
            continue
        before, after = f"with {key}={saved}", f"has {key}={now}"
        if key == "data" and located(state["files"]) == located(files):
            raise PostTrainError(
                f"{', '.join(files)}: the rows, or their tokens, have changed since the checkpoint was saved: bring "
                "the old rows back (and --data options as they were), or start anew from its exported weights"
            )
        if key == "data":
            before, after = f"on {', '.join(state['files'])}", f"takes {', '.join(files)}"
        raise PostTrainError(
            f"the checkpoint was trained {before} and this run {after}: resume with the same data and settings, or "
            "start anew from its exported weights"
        )


def located(files: Sequence[str]) -> list[str]:
    """Names of sources, those of files as absolute paths: a run may be resumed in another folder, and names its files
    otherwise in its saved config."""
    return [os.path.abspath(file) if os.path.exists(file) else file for file in files]


class EvalLoader:
    """Every tree once, in order, `batch_size` a batch over all ranks; each rank yields equally many batches."""

    def __init__(
        self,
        store: Trees,
        *,
        batch_size: int,
        world: int = 1,
        rank: int = 0,
        layout: RowLayout | None = None,
        auxiliary: Mapping[str, AuxiliaryRows] | None = None,
    ) -> None:
        self.store, self.world, self.rank, self.auxiliary = store, world, rank, auxiliary or {}
        self.batch_size = max(batch_size, world)
        self.layout = layout or RowLayout()

    def __len__(self) -> int:
        return -(-len(self.store) // self.batch_size)

    def __iter__(self) -> Iterator[TreeBatch]:
        for start in range(0, len(self.store), self.batch_size):
            members = np.arange(start, min(start + self.batch_size, len(self.store)))
            chosen = sorted(members[split_step(self.store.lengths[members], self.world)[self.rank]].tolist())
            denominators = step_denominators(self.store, members)
            batch = collate([self.store[i] for i in chosen], self.layout, denominators, chosen)
            batch.extras = {
                name: [collate([beside[i] for i in chosen], self.layout, {}, chosen)]
                for name, beside in self.auxiliary.items()
            }
            yield batch
