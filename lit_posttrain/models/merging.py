"""Turn a model with adapters or a quantized base into the plain dense model that computes the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.policy import WrappedModel
from lit_posttrain.models.precision import compute_in_float32
from lit_posttrain.models.proof import ARITHMETIC, Proof
from lit_posttrain.models.weights import PACKED, turned

_INT8 = 0.25  # LLM.int8 rounds activations too, and its dense twin does not


def plain(model: WrappedModel, proof: Proof, where: str = "") -> Any:
    """The plain transformers model without quantization and adapters; changes `model` in place. proof: of the given
    model. where: begins errors.

    Raises:
        PostTrainError: for a base that cannot be unpacked, and if a step changes what the model computes.
    """
    if quantizer(model):
        tolerance = _INT8 if any(type(p).__name__ == "Int8Params" for p in model.parameters()) else ARITHMETIC
        model = unquantized(model, where)
        proof.compare("unpacking the quantized base", proof.answers(model.transformer), tolerance)
    found = merged(model, where)
    proof.compare("merging the adapters", proof.answers(found))
    return found


def quantizer(model: WrappedModel) -> str:
    """The quantization method of a model's base, such as bitsandbytes or gptq; "" for a dense one."""
    found = getattr(model.transformer, "hf_quantizer", None)
    return "" if found is None else str(getattr(found.quantization_config.quant_method, "value", "unknown"))


@torch.no_grad()
def unquantized(model: WrappedModel, where: str = "") -> WrappedModel:
    """The same model on a dense float32 base on the CPU, with exactly the weights that the quantized base computes
    with; changes the model in place.

    Adapters are merged into this one: peft would round merged weights to 4 bits again.

    Raises:
        PostTrainError: for weights that are not bitsandbytes'.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if (kind := quantizer(model)) != "bitsandbytes":
        raise PostTrainError(
            f"{where}the base is quantized with {kind}, which cannot be unpacked, so adapters cannot be merged into "
            "it; export with --adapter true, and load the adapter with peft"
        )
    compute_in_float32(model)
    inner: Any = model.model
    if not hasattr(inner, "unload"):
        return type(model)(_unpacked(inner)).eval()
    # its layers know that what they are on is quantized: take the adapters off, and put them on the dense base
    config, adapters = inner.peft_config["default"], get_peft_model_state_dict(inner, save_embedding_layers=False)
    if getattr(config, "layer_replication", None):
        raise PostTrainError(f"{where}adapters with layer_replication cannot be merged into a quantized base")
    again = get_peft_model(_unpacked(inner.unload()), config)
    set_peft_model_state_dict(again, adapters)
    return type(model)(again).eval()


def _unpacked(model: Any) -> Any:
    """A new model: the one that was loaded quantized would still be saved with its quantization config."""
    model.hf_quantizer.remove_quantization_config(model)
    with torch.device("meta"):
        dense = type(model)(model.config)
    made: dict[int, nn.Parameter] = {}  # tied weights are one
    for name, _ in dense.named_parameters(remove_duplicate=False):
        given = model.get_parameter(name)
        if id(given) not in made:
            made[id(given)] = nn.Parameter(_full(model, name, given).float().cpu(), requires_grad=False)
        _put(dense, name, made[id(given)])
    for name, _ in dense.named_buffers():
        _put(dense, name, model.get_buffer(name).cpu())
    if hasattr(model, "generation_config"):  # a classifier has none
        dense.generation_config = model.generation_config
    return dense


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, value)


def _full(model: nn.Module, name: str, value: Tensor) -> Tensor:
    from peft.utils.integrations import dequantize_bnb_weight

    if type(value).__name__ not in PACKED:
        return value
    layer = model.get_submodule(name.rpartition(".")[0])
    full: Tensor = dequantize_bnb_weight(value, state=getattr(layer, "state", None))
    return full.T.contiguous() if turned(layer) else full


def merged(model: WrappedModel, where: str = "") -> Any:
    """The plain transformers model with the adapters merged into its weights, in place. A half-precision model becomes
    float32, so that the sums are rounded only once, when they are saved.

    Raises:
        PostTrainError: for adapters that cannot be merged.
    """
    inner: Any = model.model
    if not hasattr(inner, "merge_and_unload"):
        return inner
    if inner.dtype in (torch.bfloat16, torch.float16):
        inner.float()
    _untie(inner)
    try:
        found = inner.merge_and_unload(safe_merge=True)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError) as problem:
        raise PostTrainError(f"{where}the adapters cannot be merged into the base: {first_line(problem)}") from problem
    head = found.get_output_embeddings()
    if head is not None and head.weight is not found.get_input_embeddings().weight:
        found.config.tie_word_embeddings = found.config.get_text_config(decoder=True).tie_word_embeddings = False
    return found


def _untie(model: Any) -> None:
    """Untie matrices that share a weight if adapters change one of them, such as a tied embedding and LM head: merged
    into the shared weight, the adapters would change both. Repeated layers (layer_replication) share all weights, and
    cannot be saved that way."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {id(m.get_base_layer()) for m in model.modules() if isinstance(m, BaseTunerLayer)}
    repeats = any(getattr(config, "layer_replication", None) for config in model.peft_config.values())
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            owners.setdefault(id(value), []).append((module, name))
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for shared in owners.values():
        held_by = {id(module) for module, _ in shared}
        if len(shared) > 1 and (held_by & adapted or (repeats and not held_by <= ends)):
            for module, name in shared[1:]:
                setattr(module, name, nn.Parameter(getattr(module, name).detach().clone(), requires_grad=False))


@torch.no_grad()
def cast_saved(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the saved tensors of a model to a type, in place. Buffers that are not saved, such as rotary frequencies,
    stay in float32, as they are in a loaded half-precision model."""
    kept = model.state_dict(keep_vars=True)
    for value in (*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in kept)):
        if value.is_floating_point():
            value.data = value.data.to(dtype)
