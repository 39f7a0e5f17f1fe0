"""Floating-point operations that training a model takes per token, and how many a device can do per second.

Only the multiply-adds that training needs are counted, two operations each: no recomputation, no reference or sampling
passes, no masked-out attention. A weight takes part in three products per token (forward, gradient of its input,
gradient of itself), so 6 operations per element, 4 where it is frozen. The embedding is a look-up. The LM head is
applied to trained tokens only. Attention multiplies a query with every position it sees, twice (scores and values),
forward once and backward twice: 12 * layers * heads * head size per pair.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lit_posttrain.callbacks.memory import size_of

_MEASURE_S = 0.3


@dataclass(frozen=True)
class TrainingFlops:
    """Operations per input token (matrices), per trained token (LM head) and per pair of positions (attention)."""

    per_token: float
    per_target: float
    per_pair: float

    def of(self, tokens: float, targets: float, pairs: float) -> float:
        """Operations that training on so many tokens, trained tokens and pairs of positions takes."""
        return self.per_token * tokens + self.per_target * targets + self.per_pair * pairs


def training_flops(module: nn.Module, config: Any = None) -> TrainingFlops:
    """The operations of a language model. config: its transformers config; without one attention counts as 0."""
    embeddings = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    tables = {id(m.weight) for m in embeddings}
    largest = max(embeddings, key=lambda m: m.num_embeddings, default=None)
    vocabulary = largest.num_embeddings if largest is not None else 0
    expert_share = _value(config, "num_experts_per_tok") / (
        _value(config, "num_experts") or _value(config, "num_local_experts") or math.inf
    )
    per_token = head = 0.0
    head_found = False
    for parameter in module.parameters():
        packed = getattr(parameter, "quant_state", None) is not None
        if id(parameter) in tables or (parameter.dim() < 2 and not packed):
            continue
        work = (6.0 if parameter.requires_grad else 4.0) * size_of(parameter)
        if parameter.shape[0] == vocabulary:
            head, head_found = head + work, True
        else:
            per_token += work * (expert_share if parameter.dim() == 3 and expert_share else 1.0)
    if not head_found and largest is not None:  # the head is the embedding table
        head = (6.0 if largest.weight.requires_grad else 4.0) * size_of(largest.weight)
    heads = _value(config, "num_attention_heads")
    width = heads * (_value(config, "head_dim") or _value(config, "hidden_size") / (heads or 1.0))
    return TrainingFlops(per_token, head, 12.0 * _value(config, "num_hidden_layers") * width)


def _value(config: Any, name: str) -> float:
    found = getattr(config, name, None)
    return float(found) if isinstance(found, (int, float)) else 0.0


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products on a device, measured in about 0.3 s.

    The numbers are random: a GPU clocks higher on constant ones (13 % were seen on an H200) than training lets it.
    """
    size = 8192 if device.type == "cuda" else 1024
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        left, right = (torch.randn(size, size, device=device, dtype=dtype, generator=random) for _ in range(2))
        torch.mm(left, right)
        _wait(device)
        best, start = math.inf, time.perf_counter()
        while time.perf_counter() - start < _MEASURE_S:
            begin = time.perf_counter()
            torch.mm(left, right)
            _wait(device)
            best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
