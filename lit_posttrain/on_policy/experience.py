"""The experience of an on-policy method, and the loader that collects it and yields its micro-batches.

One epoch of the Trainer is one rollout phase: the loader asks for experience when its first batch is taken, and cuts it
into the phase's optimizer steps. FACTS that shape it: Lightning calls `iter` more than once before training starts, so
`__iter__` is a generator; a loader without a length is read one batch ahead, and rollouts would be one update stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray

from lit_posttrain.data.store.loader import StepCutter, located, require_same, step_denominators
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.mixing import Mix
from lit_posttrain.data.store.packing import common_columns
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Response, Tree, TreeBatch


@dataclass
class Experience:
    """The trees of a phase, alike on all ranks, with all that its losses need in `Tree.per_target`.

    Raises:
        PostTrainError: as `common_columns`; for a label that is no number.
    """

    trees: list[Tree]

    def __post_init__(self) -> None:
        common_columns(self.trees)
        for tree in self.trees:
            for response in tree.responses:
                for name, value in response.labels.items():
                    if not isinstance(value, SupportsFloat):
                        raise PostTrainError(
                            f"{tree.source}: the label `{name}` of a response is {value!r:.40}; labels are numbers"
                        )

    def dump(self) -> dict[str, Any]:
        """As plain tensors, for a checkpoint."""
        segments = [s for tree in self.trees for s in (tree.prompt, *(r.tokens for r in tree.responses))]
        responses = [response for tree in self.trees for response in tree.responses]
        names = list(self.trees[0].per_target) if self.trees else []
        known = dict.fromkeys(name for response in responses for name in response.labels)
        return {
            "tokens": torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *segments])),
            "sizes": torch.tensor([len(segment) for segment in segments], dtype=torch.int64),
            "responses": torch.tensor([len(tree.responses) for tree in self.trees], dtype=torch.int64),
            "loss_mask": torch.from_numpy(np.concatenate([np.zeros(0, np.bool_), *(r.loss_mask for r in responses)])),
            "labels": {name: torch.tensor([r.label(name) for r in responses], dtype=torch.float64) for name in known},
            "places": [[tree.file, tree.line] for tree in self.trees],
            "per_target": {
                name: torch.from_numpy(np.concatenate([tree.per_target[name] for tree in self.trees])) for name in names
            },
        }

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Experience:
        """The experience that `dump` saved."""
        tokens, masks = saved["tokens"].numpy(), saved["loss_mask"].numpy()
        sizes, labels = iter(saved["sizes"].tolist()), {name: v.tolist() for name, v in saved["labels"].items()}
        columns = {name: values.numpy() for name, values in saved["per_target"].items()}
        trees, at, place, target, number = [], 0, 0, 0, 0
        for (file, line), count in zip(saved["places"], saved["responses"].tolist(), strict=True):
            size = next(sizes)
            tree = Tree(tokens[at : at + size].copy(), [], file=file, line=line)
            at += size
            for _ in range(count):
                size = next(sizes)
                marks = masks[place : place + size].copy()
                own = {name: values[number] for name, values in labels.items() if values[number] == values[number]}
                tree.responses.append(Response(tokens[at : at + size].copy(), marks, own))
                at, place, number = at + size, place + size, number + 1
            end = target + num_targets(tree)
            tree.per_target = {name: values[target:end].copy() for name, values in columns.items()}
            target = end
            trees.append(tree)
        return cls(trees)


def num_targets(tree: Tree) -> int:
    """Trained tokens of a sampled tree, whose prompt is never empty and never trained on."""
    return sum(response.num_trained for response in tree.responses)


class PromptStream:
    """Prompts in an order without an end: pass after pass over the data, each in an order of its own.

    position: how many have been taken.
    """

    def __init__(self, store: TreeStore, seed: int, shuffle: bool, mix: Mix | None = None) -> None:
        self.store, self.seed, self.shuffle, self.mix = store, seed, shuffle, mix
        self.position = 0
        self._pass: tuple[int, NDArray[np.int64]] | None = None

    def take(self, count: int) -> list[int]:
        """The next rows."""
        size = len(self.store if self.mix is None else self.mix)
        rows = []
        for place in range(self.position, self.position + count):
            number, within = divmod(place, size)
            if self._pass is None or self._pass[0] != number:
                self._pass = (number, self._order(number, size))
            rows.append(int(self._pass[1][within]))
        self.position += count
        return rows

    def _order(self, number: int, size: int) -> NDArray[np.int64]:
        if self.mix is not None:
            return self.mix.order(self.seed, number, self.shuffle)
        return np.random.default_rng((self.seed, number)).permutation(size) if self.shuffle else np.arange(size)


def split_trees(trees: Sequence[Tree], parts: int) -> list[Tree]:
    """The trees, with the responses of some in several of them where there are fewer trees than `parts`: so many
    micro-batches get something to do. Sampled responses have all they need in their own columns."""
    pieces = list(trees)
    while 0 < len(pieces) < parts:
        largest = max(range(len(pieces)), key=lambda i: len(pieces[i].responses))
        whole = pieces[largest]
        if len(whole.responses) < 2:
            break
        half = len(whole.responses) // 2
        pieces[largest : largest + 1] = [_some(whole, 0, half), _some(whole, half, len(whole.responses))]
    return pieces


def _some(tree: Tree, first: int, last: int) -> Tree:
    ends = np.cumsum([0, *(response.num_trained for response in tree.responses)])
    own = slice(int(ends[first]), int(ends[last]))
    columns = {name: values[own] for name, values in tree.per_target.items()}
    return Tree(tree.prompt, tree.responses[first:last], None, tree.file, tree.line, tree.record, columns)


class ExperienceLoader:
    """Micro-batches of `steps` optimizer steps a phase; the experience of a phase is collected when its first one is
    taken.

    collect: makes the experience of a phase, by its number; called on all ranks. inner_epochs, minibatches: how often a
    phase's trees are gone through, and into how many steps each time. identity: what a resumed run must have in common.
    has_gradient: True if a tree can have a gradient; what has none counts in the denominators and is not computed.
    splits_groups: True if the responses to a prompt may be in different micro-batches of a step.
    """

    def __init__(
        self,
        prompts: PromptStream,
        collect: Callable[[int], Experience],
        cutter: StepCutter,
        *,
        batch_size: int,
        inner_epochs: int,
        minibatches: int,
        identity: Mapping[str, Any],
        has_gradient: Callable[[Tree], bool] = lambda tree: True,
        splits_groups: bool = True,
    ) -> None:
        self.prompts, self.collect, self.cutter, self.batch_size = prompts, collect, cutter, batch_size
        self.inner_epochs, self.minibatches = inner_epochs, minibatches
        self.has_gradient, self.splits_groups = has_gradient, splits_groups
        self._identity = {"data": prompts.store.fingerprint, **identity}
        self.phase = 0
        self.experience: Experience | None = None
        self.idle = False  # True if the step at hand is one of a phase that was left
        self._left = False
        self._at_hand: list[Tree] = []
        self._yielded = 0

    @property
    def accumulate(self) -> int:
        """Micro-batches of an optimizer step."""
        return self.cutter.accumulate

    def __len__(self) -> int:
        return self.inner_epochs * self.minibatches * self.cutter.accumulate

    def __iter__(self) -> Iterator[TreeBatch]:
        if self._yielded >= len(self):  # Lightning never asks for what stands behind an epoch's last batch
            self.phase, self._yielded, self.experience, self._left = self.phase + 1, 0, None, False
        if self.experience is None:
            self.experience = self.collect(self.phase)
        trees = self.experience.trees
        step, skip = divmod(self._yielded, self.cutter.accumulate)
        for number in range(step, self.inner_epochs * self.minibatches):
            self.idle = self._left
            chosen = [] if self.idle else self._step(trees, *divmod(number, self.minibatches))
            denominators = step_denominators(MemoryTrees(chosen), range(len(chosen)))
            parts = self.cutter.accumulate * self.cutter.world
            trees_at_hand = [tree for tree in chosen if self.has_gradient(tree)]
            self._at_hand = split_trees(trees_at_hand, parts) if self.splits_groups else trees_at_hand
            store = MemoryTrees(self._at_hand)
            for batch in self.cutter.micro_batches(store, np.arange(len(store)), skip=skip, denominators=denominators):
                self._yielded += 1
                yield batch
            skip = 0

    def _step(self, trees: Sequence[Tree], epoch: int, minibatch: int) -> list[Tree]:
        """The trees of one optimizer step."""
        order = np.random.default_rng((self.prompts.seed, self.phase, epoch)).permutation(len(trees))
        chosen = np.array_split(order, self.minibatches)[minibatch].tolist()
        return [trees[i] for i in chosen]

    def leave(self) -> None:
        """Skips the rest of this rollout: empty micro-batches for its remaining steps, so that the planned step count
        holds."""
        self._left = True

    def step_sources(self, rows: Sequence[int]) -> list[str]:
        """`file:line` of trees of the step at hand, by `TreeBatch.example_ids`."""
        return [self._at_hand[row].source for row in rows]

    @property
    def under_way(self) -> Experience | None:
        """The experience of which something is left to train on."""
        return self.experience if 0 < self._yielded < len(self) else None

    def state_dict(self) -> dict[str, Any]:
        """The phase, the micro-batches handed out in it, and the prompts taken. The experience itself is the method's
        to save."""
        phase, yielded, left = self.phase, self._yielded, self._left
        if yielded >= len(self):
            phase, yielded, left = phase + 1, 0, False
        own = {"phase": phase, "yielded": yielded, "left": left, "position": self.prompts.position}
        return {**own, "files": located(self.prompts.store.files), **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the micro-batches of `state`."""
        require_same(state, self._identity, self.prompts.store.files)
        self.phase, self._yielded, self._left = int(state["phase"]), int(state["yielded"]), bool(state["left"])
        self.prompts.position = int(state["position"])
