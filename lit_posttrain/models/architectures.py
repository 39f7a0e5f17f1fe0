"""Architectures that are proven to compute packed trees exactly, and what each needs for it.

tests/models/test_architectures.py runs every entry of the table against plain transformers on separate sequences.
An architecture that is not listed gets one sequence a row and its own head: slower, never silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models import attention
from lit_posttrain.ops.attention import additive, tree_mask
from lit_posttrain.ops.head import HeadTransform
from lit_posttrain.types import RowLayout, TreeBatch

# Measured on two CPU cores with SmolLM2-135M (hidden size 576): time per token = 1 + 6e-4 * row length.
# The matmuls of a token grow with the square of the hidden size, its attention linearly: the ratio falls as 1/hidden.
_CPU_ATTENTION_COST_TIMES_HIDDEN = 0.35
_GPU_ATTENTION_COST_TIMES_HIDDEN = 0.1


def _identity(config: Any) -> HeadTransform:
    return HeadTransform()


def _granite(config: Any) -> HeadTransform:
    return HeadTransform(logit_scale=1.0 / config.logits_scaling)


def _cohere(config: Any) -> HeadTransform:
    return HeadTransform(logit_scale=config.logit_scale)


def _gemma(config: Any) -> HeadTransform:
    return HeadTransform(softcap=config.final_logit_softcapping)


@dataclass(frozen=True)
class Architecture:
    """How a model family takes its masks and shapes its logits.

    masks: "full": one causal mask; "window": one mask, limited to `config.sliding_window` where that is set;
        "by_layer": a mask per layer type, handed over as a dict.
    head: what happens between the LM head and the softmax, from the model's config.
    soft_capped_attention: attention scores are capped, which sdpa cannot do: eager is the exact choice.
    """

    masks: Literal["full", "window", "by_layer"] = "full"
    head: Callable[[Any], HeadTransform] = _identity
    soft_capped_attention: bool = False


PROVEN: dict[str, Architecture] = {
    "cohere": Architecture(head=_cohere),
    "gemma2": Architecture("by_layer", _gemma, soft_capped_attention=True),
    "gemma3_text": Architecture("by_layer", _gemma),
    "gpt2": Architecture(),
    "gpt_neox": Architecture(),
    "granite": Architecture(head=_granite),
    "llama": Architecture(),
    "mistral": Architecture("window"),
    "mixtral": Architecture("window"),
    "olmo2": Architecture(),
    "phi3": Architecture("window"),
    "qwen2": Architecture("by_layer"),
    "qwen3": Architecture("by_layer"),
    "qwen3_moe": Architecture("window"),
    "smollm3": Architecture("by_layer"),
}


def architecture_of(config: Any) -> Architecture | None:
    """The proven architecture of a model config, or None."""
    return PROVEN.get(config.model_type)


def attention_implementation(requested: str, config: Any, device_type: str) -> str | None:
    """The attention implementation for transformers: for proven architectures the segment-wise one on the CPU and sdpa
    on other devices, or eager if attention scores are capped, which sdpa silently ignores; else None, transformers' own
    choice."""
    architecture = architecture_of(config)
    if requested == "sdpa" and architecture is not None and architecture.soft_capped_attention:
        raise PostTrainError(
            f"--model.policy.attention sdpa: {config.model_type} caps its attention scores, which sdpa leaves out; "
            "take auto or eager"
        )
    if requested != "auto":
        return requested
    if architecture is None:
        return None
    if architecture.soft_capped_attention:
        return "eager"
    return attention.register() if device_type == "cpu" else "sdpa"


def refuse_cudnn_attention() -> None:
    """Keep this process's sdpa off cuDNN, which torch 2.11 and later prefer for masks on H100, H200 and B200.

    There it gives NaN gradients at some lengths (length % 128 == 64, pytorch issue 196678), wrong tokens in generation
    (193893), and plans anew for every shape, while the shapes of packed rows hardly ever repeat.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def layout_of(config: Any, device_type: str, implementation: str | None) -> RowLayout:
    """How trees may be laid out for a model: shared and packed if it is proven, else one sequence per row."""
    proven = architecture_of(config) is not None
    if proven and implementation == attention.NAME:
        return RowLayout(flat=True)
    scale = _CPU_ATTENTION_COST_TIMES_HIDDEN if device_type == "cpu" else _GPU_ATTENTION_COST_TIMES_HIDDEN
    hidden = getattr(config.get_text_config(decoder=True), "hidden_size", None) or 1024
    # tensor cores want multiples of 8; a CPU does not care
    return RowLayout(proven, proven, scale / hidden, multiple=1 if device_type == "cpu" else 8)


def attention_masks(batch: TreeBatch, config: Any, implementation: str, dtype: torch.dtype) -> Any:
    """The mask argument of a proven architecture: a (R, 1, T, T) tensor, boolean for sdpa and additive for eager, or
    a dict of them by layer type."""
    architecture = PROVEN[config.model_type]

    def mask(window: int | None) -> Tensor:
        visible = tree_mask(batch.tree_ids, batch.branch_ids, batch.position_ids, window)
        return additive(visible, dtype) if implementation == "eager" else visible

    window: int | None = getattr(config, "sliding_window", None)
    if architecture.masks == "full":
        return mask(None)
    if architecture.masks == "window":
        return mask(window)
    kinds = set(config.layer_types)
    return {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}


def flat_masks(batch: TreeBatch, config: Any) -> Any:
    """Placeholders for the masks, which the segment-wise attention does not need; four-dimensional, so that
    transformers builds none of its own."""
    nothing = batch.input_ids.new_zeros((1, 1, 1, 1), dtype=torch.bool)
    if PROVEN[config.model_type].masks == "by_layer":
        return dict.fromkeys(set(config.layer_types), nothing)
    return nothing


def plain_mask(batch: TreeBatch) -> Tensor:
    """The ordinary (R, T) padding mask, for one right-padded sequence per row."""
    return (batch.tree_ids >= 0).long()
