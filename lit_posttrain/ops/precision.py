"""Which types sums are kept in."""

from __future__ import annotations

import torch


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, in which counts and sums of a whole epoch stay exact; float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64
