"""Attention over one flat row of trees, in blocks of queries, without computing masked pairs or padding.

With a dense mask over a packed row the masked scores are computed too; on CPU that was the second largest cost of a
step (see docs/decisions.md). Here the queries of a trunk or a branch are multiplied only with the keys they may see. As
in FlashAttention (Dao et al. 2022) the backward computes the probabilities again, so no matrix of scores is kept;
scores and softmax are float32 (float64 for float64), the other products have the model's type.
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
# Long enough for efficient products, short enough that causality saves much of a long segment.
_BLOCK = 256


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens that see their trunk and, causally, themselves.

    size: tokens of the segment. trunk: index of the segment that holds the prompt of this one, None for the prompt
    itself and for a whole sequence.
    """

    size: int
    trunk: int | None


@dataclass(frozen=True)
class Block:
    """Some consecutive queries of a row and the keys that they see.

    queries: slice of the row. keys: one or two slices of it, trunk first. mask (queries, n): for the last n of the keys
    0 where visible, else -inf; the keys before are visible to all.
    """

    queries: slice
    keys: tuple[slice, ...]
    mask: Tensor


class TreePlan:
    """The segments of a flat row and their blocks, computed once for all layers."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self._blocks: dict[int | None, list[Block]] = {}
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def blocks(self, window: int | None) -> list[Block]:
        """Every query of the row once; with `window` a query sees keys less than so many positions back."""
        if window not in self._blocks:
            self._blocks[window] = list(self._cut(window))
        return self._blocks[window]

    def _cut(self, window: int | None) -> list[Block]:
        found: list[Block] = []
        starts: list[int] = []
        start = 0
        for segment in self.segments:
            starts.append(start)
            before = 0 if segment.trunk is None else self.segments[segment.trunk].size
            count = -(-segment.size // _BLOCK)
            ends = [segment.size * (i + 1) // count for i in range(count)]
            for first, end in zip([0, *ends], ends, strict=False):
                # keys are numbered from the trunk's first token on, as positions are
                lowest = 0 if window is None else max(0, before + first - window + 1)
                own = slice(start + max(lowest - before, 0), start + end)
                keys: tuple[slice, ...] = (own,)
                if lowest < before:
                    assert segment.trunk is not None
                    trunk = starts[segment.trunk]
                    seen = slice(trunk + lowest, trunk + before)
                    keys = (slice(seen.start, own.stop),) if seen.stop == own.start else (seen, own)
                # without a window all see everything before the block, and the mask is one of few triangles
                shown = before + first if window is None else lowest
                shape = (end - first, before + end - shown, window)
                if shape not in self._masks:
                    self._masks[shape] = _mask(*shape)
                found.append(Block(slice(start + first, start + end), keys, self._masks[shape]))
            start += segment.size
        return found


def _mask(queries: int, keys: int, window: int | None) -> Tensor:
    """For the last `queries` of `keys` consecutive positions."""
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(distance.shape).masked_fill_(hidden, -torch.inf)


def plan_of(batch: TreeBatch) -> TreePlan:
    """The plan of a flat batch (one row, no padding): per group its trunk and each branch; a trunk with a single branch
    is one causal segment."""
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
    return TreePlan(found)


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree_plan: TreePlan | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, T, D), key and value (B, H_kv, T, D) -> (B, T, H, D).

    Without `tree_plan` (generation) it is transformers' own sdpa, but for single tokens of grouped-query models.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree_plan is None:
        if query.shape[2] == 1 and query.shape[1] > key.shape[1] and not dropout:
            return _one_token(query, key, value, attention_mask, scaling), None
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return result
    if query.device.type != "cpu":
        raise ValueError(f"{NAME} is for CPUs and was given tensors on {query.device}; build the model for its device")
    blocks = tree_plan.blocks(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dropout:
        return _with_dropout(query, key, value, blocks, scale, dropout), None
    # under autocast rotary embeddings can leave queries and keys in float32
    query, key = query.to(value.dtype), key.to(value.dtype)
    with torch.autocast(query.device.type, enabled=False):  # it would round the scores to bfloat16
        out = _BlockAttention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]  # torch's own
    return out, None


def _one_token(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """A step of decoding, with the queries of a key head as the rows of one product: sdpa with a mask repeats keys and
    values for every query head, which takes most of a step on a CPU. mask: (1 or B, 1, 1, T) or none."""
    batch, heads, _, width = query.shape
    grouped = query.view(batch, key.shape[1], heads // key.shape[1], width)
    out = F.scaled_dot_product_attention(grouped, key, value, mask, scale=scaling)
    return out.reshape(batch, 1, heads, value.shape[-1])


class _BlockAttention(torch.autograd.Function):
    # Grouped-query attention without repeated keys: the queries of a key head are rows of one product.
    # q: (H_kv, H / H_kv, T, D). k and v: (H_kv, T, D). Outputs are written where they belong: (T, H_kv, H / H_kv, D).
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float) -> Tensor:
        q, k, v = _grouped(query, key, value)
        out = query.new_empty(q.shape[2], *q.shape[:2], value.shape[-1])
        for block in blocks:
            weights = _weights(q, k, block, scale)
            mixed = torch.bmm(weights.to(v.dtype).flatten(1, 2), _take(v, block.keys))
            out[block.queries] = _by_query(mixed, weights)
        result = out.flatten(1, 2)[None]
        ctx.save_for_backward(query, key, value, result)
        ctx.plan = blocks, scale
        return result

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        with torch.autocast(grad_out.device.type, enabled=False):  # a loop of one's own may call backward inside it
            return _BlockAttention._backward(ctx, grad_out)

    @staticmethod
    def _backward(ctx: Any, grad_out: Tensor) -> Any:
        query, key, value, out = ctx.saved_tensors
        blocks, scale = ctx.plan
        q, k, v = _grouped(query, key, value)
        precise = _precise(query)
        by_group = (q.shape[2], *q.shape[:2], value.shape[-1])
        grad = grad_out[0].reshape(by_group).permute(1, 2, 0, 3)
        # what all of a query's scores lose alike: sum_j P_ij dP_ij = sum_d O_id dO_id
        shared = (grad_out[0].to(precise) * out[0].to(precise)).sum(-1, keepdim=True)
        shared = shared.view(*by_group[:3], 1).permute(1, 2, 0, 3)
        grad_q = query.new_empty(*by_group[:3], query.shape[-1])
        grad_k, grad_v = (torch.zeros_like(x, dtype=precise) for x in (k, v))
        for block in blocks:
            weights = _weights(q, k, block, scale)
            queries, upstream = (x[:, :, block.queries].flatten(1, 2) for x in (q, grad))
            _give(grad_v, block.keys, torch.bmm(weights.to(v.dtype).flatten(1, 2).transpose(1, 2), upstream))
            grad_weights = torch.bmm(upstream, _take(v, block.keys).transpose(1, 2)).to(precise).view_as(weights)
            grad_scores = grad_weights.sub_(shared[:, :, block.queries]).mul_(weights).mul_(scale)
            scores = grad_scores.to(q.dtype).flatten(1, 2)
            grad_q[block.queries] = _by_query(torch.bmm(scores, _take(k, block.keys)), weights)
            _give(grad_k, block.keys, torch.bmm(scores.transpose(1, 2), queries))
        query_grad = grad_q.flatten(1, 2).transpose(0, 1)[None]
        return query_grad, grad_k.to(key.dtype)[None], grad_v.to(value.dtype)[None], None, None


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, heads, length, width = query.shape
    q = query[0].view(key.shape[1], heads // key.shape[1], length, width)
    return q, key[0].contiguous(), value[0].contiguous()


def _weights(q: Tensor, k: Tensor, block: Block, scale: float) -> Tensor:
    """Attention weights (H_kv, H / H_kv, queries, keys) of a block."""
    queries = q[:, :, block.queries]
    precise = _precise(q)
    keys = _take(k, block.keys).to(precise)
    scores = torch.bmm(queries.flatten(1, 2).to(precise), keys.transpose(1, 2))
    scores = scores.view(*queries.shape[:3], -1).mul_(scale)
    scores[..., -block.mask.shape[1] :].add_(block.mask)
    return torch.softmax(scores, -1)


def _by_query(rows: Tensor, weights: Tensor) -> Tensor:
    """(H_kv, H / H_kv * queries, D) as (queries, H_kv, H / H_kv, D)."""
    return rows.view(*weights.shape[:3], -1).permute(2, 0, 1, 3)


def _precise(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _take(x: Tensor, keys: tuple[slice, ...]) -> Tensor:
    return x[:, keys[0]] if len(keys) == 1 else torch.cat([x[:, part] for part in keys], 1)


def _give(total: Tensor, keys: tuple[slice, ...], grad: Tensor) -> None:
    for part, own in zip(keys, torch.split(grad, [part.stop - part.start for part in keys], 1), strict=True):
        total[:, part] += own


def _with_dropout(
    query: Tensor, key: Tensor, value: Tensor, blocks: list[Block], scale: float, dropout: float
) -> Tensor:
    """The same through sdpa, which can drop attention weights."""
    out = []
    for block in blocks:
        q = query[:, :, block.queries]
        k, v = (_take(x[0], block.keys)[None] for x in (key, value))
        mask = F.pad(block.mask, (k.shape[2] - block.mask.shape[1], 0)).to(q.dtype)
        out.append(F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, enable_gqa=True))
    return torch.cat(out, 2).transpose(1, 2).contiguous()


def register() -> str:
    """Make `tree_attention` known to transformers and give its name. Masks for generation are built as for sdpa."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
