"""The memory of a step beyond weights, gradients and optimizer state does not grow with the vocabulary."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import vocabulary
from live_bytes import LiveBytes
from torch import Tensor

from lit_posttrain.ops import head, logprobs

peak_beyond = partial(vocabulary.peak_beyond, tokens=256, hidden=64, layers=2)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_vocabulary_costs_no_memory(mixed: bool) -> None:
    small, large = (peak_beyond(size, mixed=mixed) for size in (8_192, 32_768))
    assert large < 1.05 * small


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_the_measure_sees_a_copy_of_the_head(when: str, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = head.head_parts

    def whole_head_first(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, entries: int) -> Iterator[Any]:
        copied = sys._getframe(1).f_code.co_name == when
        yield from tiles(weight.to(dtype, copy=True) if copied else weight, bias, dtype, entries)

    monkeypatch.setattr(logprobs, "head_parts", whole_head_first)
    small, large = (peak_beyond(size, mixed=mixed) for size in (8_192, 32_768))
    assert large > 1.05 * small


def test_the_measure_sees_a_matrix_of_logits() -> None:
    small, large = (peak_beyond(size, vocabulary.plain_loss) for size in (8_192, 32_768))
    logits = 256 * (32_768 - 8_192) * 4 / 1e6
    assert large - small > logits


def test_live_bytes_counts_what_is_alive_at_once() -> None:
    weight = torch.nn.Parameter(torch.ones(1000, 3))  # made before: not counted
    with LiveBytes([weight]) as live:
        first = torch.ones(2000)
        del first
        second = torch.ones(500) + torch.ones(500)  # three of them at once
        third = second.view(5, 100)  # no memory of its own
        assert third.numel() == 500
        live.backward = True
        weight.sum().backward()  # a gradient is not counted either
        live.backward = False
    assert weight.grad is not None
    assert live.peak == 2000 * 4
    with live:
        fourth = torch.ones(1600)  # beside `second`, which is alive still
    assert live.peak == fourth.nbytes + second.nbytes
