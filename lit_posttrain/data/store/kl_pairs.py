"""Prompts with responses to other prompts, from which KTO measures how far the policy has moved (Ethayarajh et al.
2024). The pairing is a function of the data alone, so that neither batch sizes nor ranks change it."""

from __future__ import annotations

import copy
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lit_posttrain.data.store.loader import Trees
from lit_posttrain.data.store.logprob_cache import TargetValues
from lit_posttrain.types import Response, Tree

_LOOK_AHEAD = 200


def prompts_differ(store: Trees) -> bool:
    """True if not all prompts are the same."""
    first = store[0].prompt
    return any(not np.array_equal(store[i].prompt, first) for i in range(1, len(store)))


class KLPairs:
    """For every tree of a store its prompt with one response of a later tree, the next one that answers another prompt
    and fits.

    Where none of the next 200 fits into `max_length`, the beginning of the prompt is left out here (nothing is trained
    on it). If all prompts are the same, the response is the tree's own and has no target: D is 0.
    identity, num_targets, reference: as in `TreeStore`.
    """

    def __init__(self, store: Trees, max_length: int) -> None:
        self.store, self.max_length = store, max_length
        self.identity = f"kl_pairs, rule 1, {max_length} {store.fingerprint}"
        self.reference: TargetValues | None = None

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Tree:
        """A tree with one response, without labels."""
        own, said = self._pair(index)
        room = max(self.max_length - len(said.tokens), 1)
        tree = Tree(own.prompt[-room:], [said], file=own.file, line=own.line)
        if self.reference is not None:
            tree.per_target["ref_logprobs"] = np.array(self.reference[slice(*self._ends[index : index + 2])])
        return tree

    def _pair(self, index: int) -> tuple[Tree, Response]:
        own = self.store[index]
        size = len(self.store)
        other: Tree | None = None
        for step in range(1, size):
            if step > _LOOK_AHEAD and other is not None:
                break
            found = self.store[(index + step) % size]
            if np.array_equal(found.prompt, own.prompt):
                continue
            other = other or found
            if len(own.prompt) + len(self._response(found, index).tokens) <= self.max_length:
                other = found
                break
        response = self._response(other or own, index)
        counted = response.loss_mask if other is not None else np.zeros_like(response.loss_mask)
        return own, Response(response.tokens, counted)

    def whole(self) -> KLPairs:
        """The same pairs: they are never a part of others."""
        return copy.copy(self)

    @property
    def num_targets(self) -> int:
        """Trained tokens of all responses."""
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        sizes = [self._pair(i)[1].num_trained for i in range(len(self))]
        return np.cumsum([0, *sizes])

    @staticmethod
    def _response(tree: Tree, index: int) -> Response:
        return tree.responses[index % len(tree.responses)]
