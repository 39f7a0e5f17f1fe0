"""How many bytes weights, gradients and optimizer state take in one process, and in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

# tensors of a parameter's size that an optimizer keeps, and their bytes per element (None: the parameter's own)
_STATES: dict[str, tuple[int, float | None]] = {
    "Adam": (2, None),
    "AdamW": (2, None),
    "NAdam": (2, None),
    "RAdam": (2, None),
    "Adamax": (2, None),
    "Adagrad": (1, None),
    "Lion": (1, None),
    "RMSprop": (1, None),
    "Adafactor": (0, None),  # rows and columns alone
    "Adam8bit": (2, 1),
    "AdamW8bit": (2, 1),
    "PagedAdamW8bit": (2, 1),
    "Lion8bit": (1, 1),
}


def size_of(parameter: Tensor) -> int:
    """Elements of a parameter; of a weight that is packed in 4 bits those of the unpacked one."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else parameter.numel()


def parameter_bytes(parameters: Iterable[Tensor], local: bool = False) -> int:
    """Bytes of parameters. local: count this process's shards only."""
    tensors = [p.to_local() if local and isinstance(p, DTensor) else p for p in parameters]
    return sum(t.numel() * t.element_size() for t in tensors)


def optimizer_state_bytes(optimizer: Optimizer, local: bool = False) -> int | None:
    """Bytes of the state that an optimizer will keep; None for a class that is not known here."""
    name = type(optimizer).__name__
    if name == "SGD":
        copies, width = int(any(group["momentum"] for group in optimizer.param_groups)), None
    elif name in _STATES:
        copies, width = _STATES[name]
    else:
        return None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if width is None:
        return copies * parameter_bytes(parameters, local)
    shards = [p.to_local() if local and isinstance(p, DTensor) else p for p in parameters]
    return int(copies * width * sum(p.numel() for p in shards))
