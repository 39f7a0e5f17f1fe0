"""A policy's weights as another engine takes them: by the names and shapes of a transformers checkpoint, in files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.spec import ModelSpec

_FILE_BYTES = 2**29  # weights go over in files of about this size, one at a time


def check_transferable(spec: ModelSpec) -> None:
    """Refuse what `dense_weights` cannot give.

    Raises:
        PostTrainError: for DoRA.
    """
    if spec.lora is not None and spec.lora.dora:
        raise PostTrainError(
            "--model.policy.lora.dora: vLLM cannot have DoRA's weights; drop it, or take --model.rollout.engine.name hf"
        )


@torch.no_grad()
def dense_weights(policy: Policy, tied_twice: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Names and whole tensors: adapters are added in, 4 and 8 bits unpacked, shards gathered; tensors that are tied are
    given once, or under all their names. Where the policy is sharded, all ranks must go through it."""
    transformer = policy.transformer
    modules = dict(transformer.named_modules())
    _require_linear(modules, transformer)
    for name, value in transformer.named_parameters(remove_duplicate=not tied_twice):
        if ".lora_" in name:
            continue
        owner = modules[name.rpartition(".")[0].removesuffix(".base_layer")]
        found = _unpacked(value, modules[name.rpartition(".")[0]])
        if name.endswith(".base_layer.weight"):
            found = found.float() + _update(owner)
        yield name.replace(".base_layer.", "."), found


def _require_linear(modules: dict[str, nn.Module], transformer: Any) -> None:
    """Refuse adapters on an embedding, on experts, and on a head that shares the embedding's weight: `_update` is for a
    linear layer with a weight of its own."""
    for name, module in modules.items():
        layer: Any = module
        base = layer.get_base_layer() if hasattr(layer, "lora_A") else None
        if base is None:
            continue
        tied = base.weight is transformer.get_input_embeddings().weight if hasattr(base, "weight") else False
        if tied or isinstance(base, nn.Embedding) or type(layer).__name__ == "ParamWrapper":
            raise PostTrainError(
                f"--model.policy.lora.target_modules: adapters on {name} are not handed to vLLM; take layers of "
                "attention and MLP alone, or --model.rollout.engine.name hf"
            )


def _whole(value: Tensor) -> Tensor:
    gather = getattr(value, "full_tensor", None)  # a shard of FSDP2
    found: Tensor = value.detach() if gather is None else gather().detach()
    return found


def _unpacked(value: Tensor, module: nn.Module) -> Tensor:
    if type(value).__name__ not in ("Params4bit", "Int8Params"):
        return _whole(value)
    from peft.utils.integrations import dequantize_bnb_weight

    found: Tensor = dequantize_bnb_weight(value, state=getattr(module, "state", None)).detach()
    return found


def _update(layer: Any) -> Tensor:
    """The matrix that the adapters of a layer add to its weight."""
    total: Tensor | float = 0.0
    for name in layer.active_adapters:
        update = _whole(layer.lora_B[name].weight).float() @ _whole(layer.lora_A[name].weight).float()
        total = total + layer.scaling[name] * (update.T if layer.fan_in_fan_out else update)
    assert isinstance(total, Tensor)
    return total


def parts(weights: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """The weights in main memory, some at a time."""
    held: dict[str, Tensor] = {}
    for name, value in weights:
        copy = value.to("cpu", dtype).contiguous()
        # two names of one tensor cannot stand in a file together
        held[name] = copy.clone() if any(copy.data_ptr() == other.data_ptr() for other in held.values()) else copy
        if sum(kept.nbytes for kept in held.values()) >= _FILE_BYTES:
            yield held
            held = {}
    if held:
        yield held


def written(held: dict[str, Tensor], folder: Path) -> Path:
    """A file of weights, in shared memory where that has room."""
    from safetensors.torch import save_file

    shared, size = Path("/dev/shm"), sum(value.nbytes for value in held.values())
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 4 * size  # every process of a machine has one
    handle, name = tempfile.mkstemp(prefix="lit-posttrain-", suffix=".safetensors", dir=shared if roomy else folder)
    os.close(handle)
    try:
        save_file(held, name)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def checksum_of(value: Tensor) -> int:
    """A number that another tensor would hardly have: the sum of its bits, read as integers."""
    whole = value.view(torch.int16 if value.element_size() == 2 else torch.int32)
    return int(whole.sum(dtype=torch.int64))
