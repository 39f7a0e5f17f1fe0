"""From a model with adapters, or over a quantized base, to the plain dense model that computes the same."""

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
    """The plain transformers model without quantization and adapters, made in place; proof: of the model as it is;
    where: the adapters come from, to begin errors with.

    Raises:
        PostTrainError: for a base that cannot be unpacked, and where a step changes what the model computes.
    """
    if quantizer(model):
        tolerance = _INT8 if any(type(p).__name__ == "Int8Params" for p in model.parameters()) else ARITHMETIC
        model = unquantized(model, where)
        proof.compare("unpacking the quantized base", proof.answers(model.transformer), tolerance)
    found = merged(model, where)
    proof.compare("merging the adapters", proof.answers(found))
    return found


def quantizer(model: WrappedModel) -> str:
    """What the base of a model is quantized with, such as bitsandbytes or gptq; "" for a dense one."""
    found = getattr(model.transformer, "hf_quantizer", None)
    return "" if found is None else str(getattr(found.quantization_config.quant_method, "value", "unknown"))


@torch.no_grad()
def unquantized(model: WrappedModel, where: str = "") -> WrappedModel:
    """The same model on a dense float32 base, on the CPU, of the very weights that the quantized one computes with;
    made in place.

    peft would round merged weights to 4 bits again; a dense model need not lose that.

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
    """A new model: one that transformers has loaded quantized remembers it, and would save what it no longer holds."""
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
    """The plain transformers model with the adapters added into its weights, in place; a half-precision model becomes
    a float32 one, so that sums are rounded once, when they are written.

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
    """Give matrices that share one weight a weight each where adapters change one of them, as a tied embedding and
    language model head: merged into the shared weight, they would change both. Repeated layers (layer_replication)
    share all their weights, and cannot be saved so."""
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
    """Round what is saved of a model to a type, in place. Buffers that are computed anew when a model is loaded, such
    as rotary frequencies, stay as they are: a loaded half-precision model has them in float32."""
    kept = model.state_dict(keep_vars=True)
    for value in (*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in kept)):
        if value.is_floating_point():
            value.data = value.data.to(dtype)
