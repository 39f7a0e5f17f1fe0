"""What the divergence by rows says of its memory."""

from __future__ import annotations

import pytest
import torch
from helpers.heads import all_tensors, logits_of
from live_bytes import LiveBytes

from lit_posttrain.ops import divergence as module
from lit_posttrain.ops.divergence import divergence
from lit_posttrain.ops.head import HeadInputs

pytestmark = pytest.mark.usefixtures("small_parts")


def peak(student: HeadInputs, teacher: HeadInputs, *, rows: int | None = None, backward: bool = True) -> int:
    live = LiveBytes([torch.nn.Parameter(leaf, leaf.requires_grad) for leaf in all_tensors(student, teacher)])
    with live:
        with torch.set_grad_enabled(backward):
            found = divergence(
                student, teacher, beta=0.5, target_ids_N=torch.zeros(len(student.hidden)).long(), rows=rows
            )
        if backward:
            found.loss.backward()
    return live.peak


def large(vocabulary: int, tokens: int, width: int, frozen: bool) -> tuple[HeadInputs, HeadInputs]:
    hidden = torch.randn(tokens, width, requires_grad=True)
    student = HeadInputs(hidden, torch.randn(vocabulary, width, requires_grad=not frozen))
    return student, HeadInputs(torch.randn(tokens, width), torch.randn(vocabulary, width))


@pytest.mark.parametrize("frozen", [True, False])
def test_no_matrix_of_logits_is_made(frozen: bool) -> None:
    tokens, vocabulary, width = 128, 2048, 8
    matrix = 4 * tokens * vocabulary
    head = 4 * vocabulary * width
    found = peak(*large(vocabulary, tokens, width, frozen), rows=4)
    assert found < matrix / 4 + (not frozen) * head
    whole = [logits_of(side) for side in large(vocabulary, tokens, width, frozen)]
    with LiveBytes([]) as live:
        divergence(HeadInputs(whole[0]), HeadInputs(whole[1]), beta=0.5).loss.backward()
    assert live.peak > matrix  # the gradient of logits that were given whole


def test_a_frozen_head_costs_nothing_and_validation_no_gradient() -> None:
    tokens, vocabulary, width = 4, 512, 1024
    head = 4 * vocabulary * width
    assert peak(*large(vocabulary, tokens, width, frozen=True), rows=1) < head / 8
    trained = large(vocabulary, tokens, width, frozen=False)
    assert peak(*trained, rows=1, backward=False) < head / 8
    assert head < peak(*trained, rows=1) < 1.25 * head  # the gradient, once


@pytest.mark.parametrize("mixed", [False, True])
def test_the_vocabulary_costs_no_memory(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_SIZES", (1 << 20, 1 << 17, 256))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        few, many = (peak(*large(vocabulary, 128, 64, frozen=True)) for vocabulary in (4096, 16_384))
    assert many < 1.05 * few
