"""How many bytes of tensors are alive at a time, exactly and without noise: every operator is watched.

Resident memory will not do: allocators keep what was freed, and a gradient of the embedding that does not exist yet
hides as many bytes of activations.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts tensors that are made while it is open, but for the gradients of `parameters`.

    peak: most bytes alive at once. The parameters are not counted, nor are their gradients: each `.grad`, and, once
    `backward` is set, one on its way to becoming one: a tensor of the shape and type of a parameter without one yet.
    Open it with no gradients; tensors of before that no operator touches stay unseen.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.parameters = parameters
        self.peak = 0
        self.backward = False
        # by storage: bytes, and shape and type of the tensor it was made for
        self._alive: dict[int, tuple[int, tuple[tuple[int, ...], torch.dtype]]] = {}
        self._before = {p.untyped_storage().data_ptr() for p in parameters}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        self.peak = max(self.peak, sum(size for size, _ in self._alive.values()) - self._gradients())
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key == 0 or key in self._before or key in self._alive:
            return
        self._alive[key] = (storage.nbytes(), (tuple(tensor.shape), tensor.dtype))
        weakref.finalize(storage, self._alive.pop, key, None)

    def _gradients(self) -> int:
        kinds = Counter(kind for _, kind in self._alive.values())
        known = Counter((tuple(p.shape), p.dtype) for p in self.parameters if p.grad is not None)
        lacking = {(tuple(p.shape), p.dtype) for p in self.parameters if p.grad is None} if self.backward else set()
        found = 0
        for (shape, dtype), alive in kinds.items():
            counted = known[shape, dtype] + ((shape, dtype) in lacking)
            found += min(alive, counted) * math.prod(shape) * dtype.itemsize
        return found
