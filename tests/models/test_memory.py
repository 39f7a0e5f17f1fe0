"""The memory of a step beyond weights, gradients and optimizer state does not grow with the vocabulary."""

from __future__ import annotations

import pytest
import torch
from live_bytes import LiveBytes
from vocabulary import peak_beyond, plain_loss

SIZES = {"tokens": 256, "hidden": 64, "layers": 2}


@pytest.mark.parametrize("mixed", [False, True])
def test_the_vocabulary_costs_no_memory(mixed: bool) -> None:
    small, large = (peak_beyond(vocabulary, mixed=mixed, **SIZES) for vocabulary in (8_192, 32_768))
    assert large < 1.05 * small


def test_the_measure_sees_a_matrix_of_logits() -> None:
    small, large = (peak_beyond(vocabulary, plain_loss, **SIZES) for vocabulary in (8_192, 32_768))
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
        weight.sum().backward()  # a gradient is not counted either
    assert weight.grad is not None
    assert live.peak == 2000 * 4
    with live:
        fourth = torch.ones(1600)  # beside `second`, which is alive still
    assert live.peak == fourth.nbytes + second.nbytes
