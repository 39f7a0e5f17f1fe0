"""How many bytes of tensors are alive at a time, exactly and without noise: every operator is watched.

Resident memory will not do: allocators keep what was freed, and a gradient of the embedding that does not exist yet
hides as many bytes of activations.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts tensors that are made while it is open, but for the gradients of `parameters`.

    peak: most bytes alive at once. What was there before (weights, optimizer state) is not counted, nor is a gradient:
    a `.grad`, or one on its way to becoming one, which is a tensor of the shape of a parameter that has none yet.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parameters = parameters
        self.peak = 0
        self._alive: dict[
            int, tuple[int, tuple[int, ...]]
        ] = {}  # by storage: bytes, shape of the tensor it was made for
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
        self._alive[key] = (storage.nbytes(), tuple(tensor.shape))
        weakref.finalize(storage, self._alive.pop, key, None)

    def _gradients(self) -> int:
        shapes = [shape for _, shape in self._alive.values()]
        found = 0
        for parameter in {tuple(p.shape): p for p in self.parameters}.values():
            alike = sum(p.shape == parameter.shape for p in self.parameters)
            found += min(alike, shapes.count(tuple(parameter.shape))) * parameter.numel() * parameter.element_size()
        return found
