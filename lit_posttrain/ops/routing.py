"""The load-balancing loss of mixtures of experts (Fedus et al. 2022, equations 4 to 6).

    loss = E sum_e f_e P_e

f_e is the number of tokens that are routed to expert e, as a share of all tokens (the shares sum to k, the experts of a
token), and P_e the mean probability that the router gives it, both over the tokens of all layers. f has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def routed(gate_logits: Sequence[Tensor], index_N: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """How tokens were routed: how often each expert was taken (E,), summed over tokens and layers, without a gradient;
    and the router's probabilities (E,), summed over tokens, the mean of the layers.

    gate_logits: (T, E) of every layer. index_N: the tokens that count.
    """
    precise = torch.promote_types(gate_logits[0].dtype, torch.float32)
    layers = [torch.softmax(logits[index_N].to(precise), dim=-1) for logits in gate_logits]
    experts = layers[0].shape[-1]
    taken = [layer.detach().topk(top_k, dim=-1).indices.flatten().bincount(minlength=experts) for layer in layers]
    return torch.stack(taken).sum(0).to(precise), torch.stack([layer.sum(0) for layer in layers]).mean(0)


def load_balancing(load_E: Tensor, probability_E: Tensor) -> Tensor:
    """E sum_e f_e P_e, a scalar; with sums of probabilities over tokens instead of means its sum over tokens."""
    return len(load_E) * (load_E * probability_E).sum()
