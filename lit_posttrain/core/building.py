"""Models of a method, built as the Trainer runs them: their type, their dropout, their shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch

from lit_posttrain.models.loading import require_trainable
from lit_posttrain.models.sharding import AnyModel, build_sharded
from lit_posttrain.models.spec import DType, ModelSpec
from lit_posttrain.trainer_state import attached_trainer


def dtype_of(module: pl.LightningModule, spec: ModelSpec) -> DType:
    """Type of a spec's weights in memory: what the spec says, or what its `auto` means in this run."""
    if spec.dtype != "auto":
        return spec.dtype
    trainer = attached_trainer(module)
    precision = str(trainer.precision) if trainer is not None else ""
    return "bfloat16" if spec.lora is not None and precision == "bf16-mixed" else "float32"


def device_type(module: pl.LightningModule) -> str:
    """Where a module computes: cpu, cuda, mps."""
    trainer = attached_trainer(module)
    return str(trainer.strategy.root_device.type) if trainer is not None else module.device.type


def build_model(
    module: pl.LightningModule,
    build: Callable[..., AnyModel],
    spec: ModelSpec,
    vocabulary: int,
    *,
    dropout: bool,
    trained: bool = True,
) -> AnyModel:
    """A model with the weights that a spec names, sharded where the strategy shards. What is drawn, such as adapters,
    is drawn alike under every strategy: from the run's seed, whatever else was drawn. Collective.

    build: `build_policy` or another of models/loading.py. vocabulary: tokens of the tokenizer. dropout: True if the
    model's own dropout is on where the spec does not say. trained: False for a model that may be quantized whole.
    """
    if trained:
        require_trainable(spec)
    spec = replace(spec, dropout=dropout if spec.dropout is None else spec.dropout, dtype=dtype_of(module, spec))

    def drawn_alike(*given: Any, **options: Any) -> AnyModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            return build(*given, **options)

    if module.device_mesh is None:
        return drawn_alike(spec, vocabulary, device_type=device_type(module))
    mesh = module.device_mesh["data_parallel"]
    return build_sharded(drawn_alike, spec, vocabulary, mesh, module.trainer.strategy.root_device)
