"""Attention by blocks against one dense masked attention, over every kind of tree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_posttrain.data.store.packing import collate
from lit_posttrain.models import attention
from lit_posttrain.ops.attention import tree_mask
from lit_posttrain.types import Response, RowLayout, Tree, TreeBatch

HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def flat_batch(seed: int = 0) -> TreeBatch:
    """Trees of 1, 2 and 4 responses with prompts from none to long, in one flat row."""
    draw = np.random.default_rng(seed)

    def tokens(size: int) -> Any:
        return draw.integers(3, 90, size).astype(np.int32)

    def response(size: int) -> Response:
        return Response(tokens(size), np.ones(size, np.bool_))

    shapes = [(23, [9]), (7, [11, 2]), (1, [1, 13, 5, 8]), (0, [17]), (30, [1, 1])]
    trees = [Tree(tokens(prompt), [response(size) for size in sizes]) for prompt, sizes in shapes]
    return collate(trees, RowLayout(flat=True), {})


def inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(1)
    made = [torch.randn(1, heads, length, WIDTH, dtype=dtype) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [x.requires_grad_() for x in made]


def dense(batch: TreeBatch, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = tree_mask(batch.tree_ids, batch.branch_ids, batch.position_ids, window)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=0.4, enable_gqa=True).transpose(1, 2)


def by_blocks(batch: TreeBatch, window: int | None, q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    options: dict[str, Any] = {"tree_plan": attention.plan_of(batch), "sliding_window": window, "dropout": dropout}
    return attention.tree_attention(None, q, k, v, None, scaling=0.4, **options)[0]


@pytest.mark.parametrize("block", [3, 256])
@pytest.mark.parametrize("window", [None, 1, 5, 20])
@pytest.mark.parametrize("dropout", [0.0, 1e-12])  # with dropout another implementation answers
def test_values_and_gradients(block: int, window: int | None, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK", block)
    batch = flat_batch()
    qkv = inputs(batch.input_ids.shape[1], torch.float64)
    upstream = torch.randn(1, batch.input_ids.shape[1], HEADS, WIDTH, dtype=torch.float64)
    expected, actual = dense(batch, window, *qkv), by_blocks(batch, window, *qkv, dropout=dropout)
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    mine, theirs = (torch.autograd.grad(out, qkv, upstream) for out in (actual, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_a_step_of_decoding_is_transformers_sdpa(masked: bool, dtype: torch.dtype) -> None:
    """With another padding in every row."""
    torch.manual_seed(2)
    q, k, v = (torch.randn(5, h, n, WIDTH, dtype=dtype) for h, n in ((HEADS, 1), (KEY_HEADS, 9), (KEY_HEADS, 9)))
    mask = (torch.arange(9) >= torch.arange(5)[:, None])[:, None, None] if masked else None
    module = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)
    expected, _ = sdpa_attention_forward(module, q, k, v, mask, scaling=0.4)
    found, _ = attention.tree_attention(module, q, k, v, mask, scaling=0.4)
    assert found.shape == expected.shape == (5, 1, HEADS, WIDTH)
    torch.testing.assert_close(found, expected, atol=1e-12 if dtype == torch.float64 else 1e-2, rtol=0)


def test_blocks_compute_little_that_is_masked() -> None:
    batch = flat_batch()
    blocks = attention.plan_of(batch).blocks(None)
    visible = int(tree_mask(batch.tree_ids, batch.branch_ids, batch.position_ids).sum())
    computed, hidden = 0, 0
    for block in blocks:
        computed += len(block.mask) * sum(part.stop - part.start for part in block.keys)
        hidden += int((block.mask < 0).sum())
    assert computed - hidden == visible
    assert computed < 2 * visible
    assert batch.input_ids.shape[1] ** 2 > 5 * visible, "a dense mask would compute much more"


def test_backward_inside_autocast_does_not_round() -> None:
    batch = flat_batch()
    qkv = inputs(batch.input_ids.shape[1], torch.float32)
    out = by_blocks(batch, None, *qkv)
    upstream = torch.randn_like(out)
    expected = torch.autograd.grad(out, qkv, upstream, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.autograd.grad(out, qkv, upstream)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_autocast_does_not_round_the_scores() -> None:
    batch = flat_batch()
    exact = [x.detach().bfloat16() for x in inputs(batch.input_ids.shape[1], torch.float32)]
    q, k, v = exact
    with torch.autocast("cpu", dtype=torch.bfloat16):  # rotary embeddings leave float32 queries and keys
        out = by_blocks(batch, None, 8 * q.float(), k.float(), v)
    expected = dense(batch, None, 8 * q.double(), k.double(), v.double())
    assert out.dtype == torch.bfloat16
    # scores up to 60: rounded to bfloat16 they would be wrong by 0.1, and the weights by 10 %
    assert float((out - expected).abs().max()) < 0.02
