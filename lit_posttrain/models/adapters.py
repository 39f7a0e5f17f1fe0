"""Low-rank adapters: which layers get them, and which models cannot have them."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.spec import LoRASpec

log = logging.getLogger(__name__)
_OPTION = "--model.policy.lora.target_modules"


def add_adapters(model: nn.Module, lora: LoRASpec, head: Literal["lm", "score"] = "lm") -> Any:
    """Put peft's LoRA layers into a model. Adapters are float32 whatever the base's type. A score head is trained and
    saved whole.

    Raises:
        PostTrainError: for a target that is no layer of the model, or one that cannot have adapters.
    """
    from peft import LoraConfig, get_peft_model

    _check_targets(model, lora.target_modules, head)
    try:
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.peft_alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                use_dora=lora.dora,
                use_rslora=lora.rslora,
                task_type="CAUSAL_LM" if head == "lm" else "SEQ_CLS",
            ),
        )
    except (ValueError, TypeError, NotImplementedError, ImportError) as problem:
        raise PostTrainError(f"--model.policy.lora: {first_line(problem)}") from problem
    _tell_of_experts(adapted, lora)
    return adapted


def _check_targets(model: nn.Module, targets: str | Sequence[str], head: str) -> None:
    """Every target must be the name of a layer: peft silently ignores those that it does not find."""
    if targets == "all-linear":
        return
    layers = {name: module for name, module in model.named_modules() if name}
    if not targets:
        raise PostTrainError(f"{_OPTION} is empty; leave it out for all linear layers, or name some: {_names(layers)}")
    if isinstance(targets, str):
        found = _matching(targets, layers)
        if not found:
            example = next(name for name, module in layers.items() if name.count(".") > 2 and _adaptable(module))
            raise PostTrainError(
                f"{_OPTION} {targets}: a text is a regular expression for whole names, such as {example}, and matches "
                f"none; a list of names is written '[{targets}]', all linear layers are all-linear"
            )
        _require_adaptable(found, layers)
        return
    for target in targets:
        found = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not found:
            close = difflib.get_close_matches(target, _short(layers), n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}?" if close else f"it has {_names(layers)}"
            raise PostTrainError(f"{_OPTION}: the model has no layer named {target}; {hint}")
        if head == "score" and target == "score":
            raise PostTrainError(f"{_OPTION}: the score head is trained whole; leave score out")
        _require_adaptable(found, layers)


def _matching(pattern: str, layers: dict[str, nn.Module]) -> list[str]:
    try:
        return [name for name in layers if re.fullmatch(pattern, name)]
    except re.error as problem:
        raise PostTrainError(f"{_OPTION} {pattern}: not a regular expression ({problem})") from problem


def _require_adaptable(names: Sequence[str], layers: dict[str, nn.Module]) -> None:
    wrong = next((name for name in names if not _adaptable(layers[name])), None)
    if wrong is not None:
        raise PostTrainError(
            f"{_OPTION}: {wrong} is a {type(layers[wrong]).__name__}, not a layer that adapters go on; the model has "
            f"{_names(layers)}"
        )


def _adaptable(module: nn.Module) -> bool:
    """True for a layer with a matrix. Quantized layers of other libraries have buffers instead."""
    weight = getattr(module, "weight", None)
    plain = not any(True for _ in module.children())
    return plain and (any(True for _ in module.buffers()) if weight is None else weight.dim() > 1)


def _short(layers: dict[str, nn.Module]) -> list[str]:
    """The last parts of the names of the layers of the decoder's blocks, each once."""
    blocks = [name for name, module in layers.items() if name.count(".") > 2 and _adaptable(module)]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in blocks))


def _names(layers: dict[str, nn.Module]) -> str:
    return ", ".join(_short(layers))


def _tell_of_experts(model: nn.Module, lora: LoRASpec) -> None:
    """transformers keeps all experts of a layer in one tensor, which is no layer of its own; peft puts adapters on
    those of some architectures, and leaves others as they are."""
    frozen = {name: p for name, p in model.named_parameters() if p.dim() == 3 and not p.requires_grad}
    experts = [p for name, p in frozen.items() if ".base_layer." not in name]
    if experts:
        share = sum(p.numel() for p in experts) / sum(p.numel() for p in model.parameters())
        log.warning(
            "the adapters (target_modules %s) leave the experts as they are: %.0f %% of all weights; they change the "
            "layers around them",
            lora.target_modules,
            100 * share,
        )
