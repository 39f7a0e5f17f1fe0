"""From a model with adapters, or over a quantized base, to the plain dense model that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lit_posttrain.models.loading import build_policy, build_scorer
from lit_posttrain.models.policy import Backbone, Scorer
from lit_posttrain.models.spec import ModelSpec


@torch.no_grad()
def unquantized(model: Backbone, spec: ModelSpec, vocabulary: int) -> Backbone:
    """The same model on a dense float32 base, on the CPU, of the very weights that the quantized one computes with.

    peft would round merged weights to 4 bits again; a dense model need not lose that.
    """
    from peft.utils.integrations import dequantize_bnb_weight

    build: Callable[..., Backbone] = build_scorer if isinstance(model, Scorer) else build_policy
    dense = build(replace(spec, quantization=None, dtype="float32"), vocabulary)
    lacking, kept = dict(dense.named_parameters()), dense.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in kept:
            kept[name].copy_(buffer)
    for name, module in model.named_modules():
        for own, value in module.named_parameters(prefix=name, recurse=False):
            if own not in lacking:  # the second name of a tied weight
                continue
            quantized = type(value).__name__ in ("Params4bit", "Int8Params")
            # one weight at a time: a whole float32 model would not fit beside the quantized one on a GPU
            full = dequantize_bnb_weight(value, state=getattr(module, "state", None)) if quantized else value
            lacking.pop(own).copy_(full)
    assert not lacking, sorted(lacking)
    return dense.eval()


def merged(model: Backbone) -> Any:
    """The plain transformers model with the adapters added into its weights, in place; a half-precision model becomes
    a float32 one, so that sums are rounded once, when they are written."""
    inner: Any = model.model
    if not hasattr(inner, "merge_and_unload"):
        return inner
    if inner.dtype in (torch.bfloat16, torch.float16):
        inner.float()
    untie_adapted(inner)
    return inner.merge_and_unload(safe_merge=True)


def untie_adapted(model: Any) -> None:
    """Give matrices that share one weight a weight each where adapters change one of them, as a tied embedding and
    language model head: merged into the shared weight, they would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {id(m.get_base_layer()) for m in model.modules() if isinstance(m, BaseTunerLayer)}
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            owners.setdefault(id(value), []).append((module, name))
    untied = False
    for shared in owners.values():
        if len(shared) > 1 and any(id(module) in adapted for module, _ in shared):
            for module, name in shared[1:]:
                setattr(module, name, nn.Parameter(getattr(module, name).detach().clone(), requires_grad=False))
            untied = True
    if untied:
        config = model.get_base_model().config
        config.tie_word_embeddings = config.get_text_config(decoder=True).tie_word_embeddings = False


@torch.no_grad()
def cast_saved(model: nn.Module, dtype: torch.dtype) -> None:
    """Round what is saved of a model to a type, in place. Buffers that are computed anew when a model is loaded, such
    as rotary frequencies, stay as they are: a loaded half-precision model has them in float32."""
    kept = model.state_dict(keep_vars=True)
    for value in (*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in kept)):
        if value.is_floating_point():
            value.data = value.data.to(dtype)
