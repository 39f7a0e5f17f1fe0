"""The types that weights are kept in and computed with: float types, and the 4 and 8 bits of bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lit_posttrain.models.spec import ModelSpec

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def torch_dtype(spec: ModelSpec) -> torch.dtype:
    """The type that a spec's weights are loaded in; "auto", if no trainer has replaced it, is float32."""
    return DTYPES["float32" if spec.dtype == "auto" else spec.dtype]


def quantization_config(spec: ModelSpec) -> Any:
    """The bitsandbytes config of a spec's quantization."""
    from transformers import BitsAndBytesConfig

    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(spec),
    )


def keep_scales(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in their first evaluation on a processor with AVX512-BF16, which
    rounds their scales to bfloat16 permanently: a validation would change the model in training."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def compute_in_float32(model: nn.Module) -> None:
    """Let a model with bfloat16 or 4-bit weights compute in float32, with the same weights."""
    nn.Module.float(model)  # transformers forbids it for quantized models, whose packed weights it leaves as they are
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "compute_dtype")]
    for layer in layers:
        if type(layer.weight).__name__ == "Params4bit":
            layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32
