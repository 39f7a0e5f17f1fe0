"""Attention over one flat row of trees, a segment at a time: nothing is computed for padding or masked pairs.

A dense mask over a packed row computes what it masks, and on CPU that was the second largest cost of a step (see
docs/decisions.md). Here queries of a trunk or a branch meet only the keys they may see. It works in float32 whatever
the model's type: exact where bfloat16 rounds, and faster on processors without AMX.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_posttrain.types import TreeBatch

NAME = "lit_posttrain_tree"


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens that see their trunk and, causally, themselves.

    size: tokens of the segment. trunk: index of the segment that holds the prompt of this one, None for the prompt
    itself and for a whole sequence.
    """

    size: int
    trunk: int | None


def segments_of(batch: TreeBatch) -> list[Segment]:
    """The segments of a flat batch (one row, no padding): per group its trunk and each branch; a trunk with a single
    branch is one causal segment."""
    keys = torch.stack([batch.tree_ids[0], batch.branch_ids[0]])
    unique, sizes = torch.unique_consecutive(keys, dim=1, return_counts=True)
    found: list[Segment] = []
    for _, runs in groupby(zip(*unique.tolist(), sizes.tolist(), strict=True), key=lambda run: run[0]):
        (_, first_branch, first_size), *others = runs
        if first_branch == 0 and len(others) == 1:
            found.append(Segment(first_size + others[0][2], None))
            continue
        trunk = len(found) if first_branch == 0 else None
        found += [Segment(first_size, None), *(Segment(size, trunk) for _, _, size in others)]
    return found


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree_segments: list[Segment] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, T, D), key and value (B, H_kv, T, D) -> (B, T, H, D).

    Without `tree_segments` (generation) it is transformers' own sdpa.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree_segments is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return result
    sizes = [s.size for s in tree_segments]
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    # split, not slices: the backward of one split is one cat, that of a slice a full-size tensor of zeros
    queries, keys, values = (torch.split(x.to(precise), sizes, dim=2) for x in (query, key, value))
    repeats = query.shape[1] // key.shape[1]
    outputs = []
    for index, segment in enumerate(tree_segments):
        own_key, own_value, before = keys[index], values[index], 0
        if segment.trunk is not None:
            before = sizes[segment.trunk]
            own_key = torch.cat([keys[segment.trunk], own_key], 2)
            own_value = torch.cat([values[segment.trunk], own_value], 2)
        if repeats > 1:
            own_key, own_value = own_key.repeat_interleave(repeats, 1), own_value.repeat_interleave(repeats, 1)
        mask = _band(segment.size, before, sliding_window, query.device)
        out = F.scaled_dot_product_attention(
            queries[index], own_key, own_value, mask, dropout, is_causal=mask is None, scale=scaling
        )
        outputs.append(out)
    return torch.cat(outputs, 2).to(query.dtype).transpose(1, 2).contiguous(), None


def _band(size: int, before: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which of `before + size` keys each of `size` queries sees; None where plain causality says it all."""
    if window is not None and before + size <= window:
        window = None
    if before == 0 and window is None:
        return None
    distance = torch.arange(before, before + size, device=device)[:, None] - torch.arange(before + size, device=device)
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def register() -> str:
    """Make `tree_attention` known to transformers and give its name. Masks for generation are built as for sdpa."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
