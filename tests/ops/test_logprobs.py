"""Tiled log-probabilities against a plain float64 log-softmax, and their gradients against autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_posttrain.ops.head import HeadTransform
from lit_posttrain.ops.logprobs import _TiledLogprobs, token_logprobs

HEADS = {
    "plain": HeadTransform(),
    "scaled": HeadTransform(logit_scale=0.3),
    "capped": HeadTransform(softcap=2.0),
    "both": HeadTransform(logit_scale=1.7, softcap=3.0),
}


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: HeadTransform, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropy and hits written out with the full matrix of logits."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logps = torch.log_softmax(logits / temperature, -1)
    return logps.gather(1, targets[:, None])[:, 0], -(logps.exp() * logps).sum(-1), logps.argmax(-1) == targets


def inputs(dtype: torch.dtype, with_bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(23, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(37, 8, dtype=dtype, requires_grad=True)
    bias = torch.randn(37, dtype=dtype, requires_grad=True) if with_bias else None
    return hidden, weight, bias, torch.randint(37, (23,))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", HEADS)
def test_values_and_gradients_in_float64(name: str, temperature: float, with_bias: bool) -> None:
    head = HEADS[name]
    hidden, weight, bias, targets = inputs(torch.float64, with_bias)
    leaves = [t for t in (hidden, weight, bias) if t is not None]
    logps, entropy, hits = plain(hidden, weight, bias, targets, head, temperature)
    upstream = torch.linspace(-1, 2, 23, dtype=torch.float64)
    expected = torch.autograd.grad((logps * upstream + entropy * upstream.flip(0)).sum(), leaves)
    tile = (5, 8)  # several tiles of rows and of vocabulary, some shorter
    out = token_logprobs(
        hidden, weight, targets, bias, head=head, temperature=temperature, entropy=True, correct=True, tile=tile
    )
    assert out.entropy is not None
    assert out.correct is not None
    torch.testing.assert_close(out.logprobs, logps, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(out.entropy, entropy, atol=1e-12, rtol=1e-12)
    assert torch.equal(out.correct, hits)
    actual = torch.autograd.grad((out.logprobs * upstream + out.entropy * upstream.flip(0)).sum(), leaves)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


def test_gradients_without_entropy_and_with_frozen_head() -> None:
    hidden, weight, _, targets = inputs(torch.float64, False)
    logps, _, _ = plain(hidden, weight, None, targets, HEADS["plain"], 1.0)
    (expected,) = torch.autograd.grad(logps.sum(), [hidden])
    out = token_logprobs(hidden, weight.detach(), targets)
    (actual,) = torch.autograd.grad(out.logprobs.sum(), [hidden])
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)


def test_bf16_mixed_runs_backward_and_keeps_float32_master_gradients() -> None:
    hidden, weight, _, targets = inputs(torch.float32, False)
    reference, _, _ = plain(hidden.double(), weight.double(), None, targets, HEADS["plain"], 1.0)
    expected = torch.autograd.grad(reference.sum(), [hidden, weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = token_logprobs(hidden, weight, targets)
        loss = out.logprobs.sum()
    loss.backward()
    assert out.logprobs.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.logprobs, reference.float(), atol=0.06, rtol=0.02)
    for mine, theirs in ((hidden.grad, expected[0]), (weight.grad, expected[1])):
        assert mine is not None
        assert float((mine - theirs.float()).norm() / theirs.norm()) < 0.02


def test_no_targets_keeps_the_graph() -> None:
    hidden, weight, _, _ = inputs(torch.float32, False)
    none = torch.zeros(0, dtype=torch.long)
    out = token_logprobs(hidden[:0], weight, none, entropy=True)
    out.logprobs.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) == 0


def test_a_temperature_of_zero_is_refused() -> None:
    hidden, weight, _, targets = inputs(torch.float32, False)
    with pytest.raises(ValueError, match="must be positive"):
        token_logprobs(hidden, weight, targets, temperature=0.0)


@pytest.mark.parametrize("wrong", [-1, 37])
def test_a_target_outside_the_vocabulary_is_refused(wrong: int) -> None:
    hidden, weight, _, targets = inputs(torch.float32, False)
    targets[3] = wrong
    with pytest.raises(IndexError, match="outside the vocabulary"):
        token_logprobs(hidden, weight, targets)


def test_without_the_check_a_wrong_target_is_nan() -> None:
    hidden, weight, _, targets = inputs(torch.float32, False)
    targets[3] = 37
    logps, *_ = _TiledLogprobs.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        hidden, weight, None, targets, HeadTransform(), 1.0, False, False, (5, 8)
    )
    assert logps.isnan().tolist() == [i == 3 for i in range(23)]


def test_entropy_where_a_logit_is_minus_infinity() -> None:
    hidden, weight, _, targets = inputs(torch.float64, False)
    bias = torch.zeros(37, dtype=torch.float64)
    bias[30:] = -torch.inf
    logps, entropy, _ = plain(hidden, weight[:30], None, targets.clamp(max=29), HeadTransform(), 1.0)
    out = token_logprobs(hidden, weight, targets.clamp(max=29), bias, entropy=True, tile=(5, 8))
    assert out.entropy is not None
    torch.testing.assert_close(out.entropy, entropy, atol=1e-12, rtol=1e-12)
    for mine, theirs in ((out.logprobs, logps), (out.entropy, entropy)):
        (a,), (b,) = (torch.autograd.grad(x.sum(), [hidden], retain_graph=True) for x in (mine, theirs))
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_of_equal_logits_the_first_is_the_most_likely_across_tiles() -> None:
    hidden, weight = torch.ones(2, 1), torch.tensor([[0.0], [1.0], [1.0], [0.5]])
    out = token_logprobs(hidden, weight, torch.tensor([1, 2]), correct=True, tile=(2, 2))
    assert out.correct is not None
    assert out.correct.tolist() == [True, False]
