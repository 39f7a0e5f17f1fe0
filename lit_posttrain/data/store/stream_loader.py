"""Training micro-batches of a stream, and the options that a stream does not allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from lit_posttrain.data.store.loader import AuxiliaryRows, StepCutter, Trees, located, require_same
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.streaming import TreeStream
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import RowLayout, TreeBatch


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
    """Require that a run on a stream ends by its number of steps alone. The whole run is one epoch for Lightning, so
    that with a limit of epochs a finished run could not be continued.

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
        files = located([source.name for source in self.stream.sources])
        yielded = 0 if self._yielded >= self._end else self._yielded
        done = self._part == self.accumulate
        start, part = (self.stream.place(), 0) if done else (self._start, self._part)
        return {"yielded": yielded, "part": part, "start": start, "files": files, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the micro-batches of `state`."""
        require_same(state, self._identity(), [source.name for source in self.stream.sources])
        self._yielded, self._part, self._start = state["yielded"], state["part"], state["start"]
