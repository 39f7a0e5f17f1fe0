"""Check that loaded weights fit the model: one check for every way in which weights are loaded.

Libraries load what fits, initialise the rest at random and only log it. Here their report is read, or a state dict
compared, and an error counts and names the tensors that do not fit.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lit_posttrain.errors import PostTrainError

Shape = tuple[int, ...]
PACKED = {"Params4bit": "4 bits", "Int8Params": "8 bits"}  # bitsandbytes' kinds of parameters

# what tools put in front of every name, and how the folder should have been written
_PREFIXES = {
    "base_model.model.": "save what peft's merge_and_unload() returns, not the model around it",
    "module.": "save model.module, not the DataParallel wrapper around it",
    "_orig_mod.": "save the model itself, not what torch.compile returned",
    "_fsdp_wrapped_module.": "save the model's full state dict, not that of the FSDP wrapper",
}


def require_fit(
    where: str,
    wanted: Collection[str],
    missing: Collection[str],
    unknown: Collection[str],
    shapes: Collection[tuple[str, Shape, Shape]] = (),
    remedy: str = "",
) -> None:
    """Raise if tensors are missing, unknown or of another shape.

    where: what is loaded; begins the message. wanted: names of all tensors that the model needs. shapes: (name,
        shape that was found, shape that the model has). remedy: ends the message; found from the names where empty.

    Raises:
        PostTrainError: with the number and the first names of the tensors that do not fit.
    """
    found = []
    if missing:
        found.append(f"{_count(missing)} of {len(wanted)} missing ({_named(missing)})")
    if unknown:
        found.append(f"{_count(unknown)} unknown to the model ({_named(unknown)})")
    if shapes:
        each = [f"{name}: {list(got)}, the model has {list(has)}" for name, got, has in sorted(shapes)]
        found.append(f"{_count(shapes)} of another shape ({_named(each, '; ')})")
    if found:
        remedy = remedy or _remedy(missing, unknown)
        raise PostTrainError(f"{where}: the weights do not fit the model: {', '.join(found)}; {remedy}")


def _count(names: Collection[Any]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _named(names: Collection[str], between: str = ", ") -> str:
    first = sorted(names)[:3]
    return between.join([*first, "..."] if len(names) > len(first) else first)


def _remedy(missing: Collection[str], unknown: Collection[str]) -> str:
    for prefix, advice in _PREFIXES.items():
        bare = {name.replace(prefix, "") for name in unknown if prefix in name}
        if bare & set(missing):
            return f"all names have {prefix} in front: {advice}"
    if any(".lora_" in name or ".base_layer." in name for name in unknown):
        return "there are LoRA layers among the weights: merge them into the model (peft's merge_and_unload), then save"
    return "the files or the config.json beside them are not those of this model; save or download it again"


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], where: str, *, spare: str | None = None, frozen_too: bool = False
) -> None:
    """Copy a state dict into a module, once it is checked as by `require_state`.

    spare: prefix of names in the state dict that the module does not have and does not need.
    """
    state = {name: value for name, value in state.items() if spare is None or not name.startswith(spare)}
    require_state(module, state, where, frozen_too=frozen_too)
    module.load_state_dict(state, strict=False)


def require_state(
    module: nn.Module,
    state: Mapping[str, Any],
    where: str,
    *,
    frozen_too: bool = False,
    buffers: Collection[str] = (),
    remedy: str = "",
) -> None:
    """Check a module's saved state dict: it must have all trainable parameters. Frozen ones, such as the base of
    adapters, may be absent.

    frozen_too: the frozen parameters must be there too. buffers: further names that must be there. Other arguments and
    errors as for `require_fit`.
    """
    has = {name: _shape(value) for name, value in module.state_dict(keep_vars=True).items()}
    trained = {name for name, parameter in module.named_parameters() if frozen_too or parameter.requires_grad}
    wanted = trained | set(buffers)
    differ = [(n, _shape(v), has[n]) for n, v in state.items() if n in has and _shape(v) != has[n]]
    require_fit(where, wanted, wanted - set(state), set(state) - set(has), differ, remedy)


def _shape(value: Any) -> tuple[int, ...]:
    """Of a tensor, or of one that is still on disk; a module's extra state, which may be anything, has none."""
    return tuple(getattr(value, "shape", ()))


class LoadReport(logging.Handler):
    """Collects the log of transformers, the only place where it names tensors that it could not convert."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record."""
        self.text += re.sub(r"\x1b\[\d*m", "", record.getMessage()) + "\n"

    @property
    def conversions(self) -> str:
        """The tensors that could not be made from those in the files, as a text; empty for none."""
        names = re.findall(r"^(\S.*?)\s*\|\s*CONVERSION\b", self.text, re.MULTILINE)
        reasons = re.findall(r"^\w*(?:Error|Exception): (.+)$", self.text, re.MULTILINE)
        return f"{_named(names)} ({reasons[0]})" if names and reasons else _named(names)


@contextmanager
def load_report() -> Iterator[LoadReport]:
    """Collect what transformers logs while it loads, at any verbosity; nothing is printed."""
    speaker, report = logging.getLogger("transformers.modeling_utils"), LoadReport()
    level, propagate = speaker.level, speaker.propagate
    speaker.addHandler(report)
    speaker.setLevel(logging.WARNING)
    speaker.propagate = False
    try:
        yield report
    finally:
        speaker.removeHandler(report)
        speaker.setLevel(level)
        speaker.propagate = propagate


def check_loaded(
    model: Any, info: Mapping[str, Any], where: str, *, new: Collection[str] = (), spare: Collection[str] = ()
) -> None:
    """Check what `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)` said of its load.

    where: the model's path. new: prefixes of the names of a head that is initialised anew. spare: prefixes of the
        names of a head that is left out.

    Raises:
        PostTrainError: as `require_fit`; for a head that should be tied to the embeddings and has other values.
    """
    left = [re.compile(pattern) for pattern in _left_out(model)]
    require_fit(
        f"the model at {where}",
        [name for name, _ in model.named_parameters()],
        [n for n in info["missing_keys"] if not n.startswith(tuple(new))],
        [n for n in info["unexpected_keys"] if not n.startswith(tuple(spare)) and not any(p.search(n) for p in left)],
        [(name, tuple(got), tuple(has)) for name, got, has in info["mismatched_keys"]],
    )
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = model.config.get_text_config(decoder=True).tie_word_embeddings and bool(type(model)._tied_weights_keys)
    if tied and head is not None and head.weight is not embeddings.weight:
        raise PostTrainError(
            f"the model at {where}: its config.json ties the output head to the embeddings (tie_word_embeddings true), "
            "and its files hold two different matrices; set tie_word_embeddings to false there, or remove the one "
            "that is wrong"
        )


def require_shapes(model: nn.Module, like: nn.Module, where: str) -> None:
    """Check the shapes of a model's parameters, 4 and 8 bits unpacked, against those of an empty one; errors as for
    `require_fit`."""
    has = {name: tuple(parameter.shape) for name, parameter in like.named_parameters()}
    differ = []
    for name, parameter in model.named_parameters():
        packed = getattr(parameter, "quant_state", None)
        shape = tuple(parameter.shape if packed is None else packed.shape)
        if type(parameter).__name__ in PACKED and turned(model.get_submodule(name.rpartition(".")[0])):
            shape = shape[::-1]
        if shape != has.get(name, shape):
            differ.append((name, shape, has[name]))
    require_fit(f"the model at {where}", has, [], [], differ)


def turned(layer: nn.Module) -> bool:
    """True if a quantized layer replaces one that stores its matrix transposed, as GPT-2's Conv1D."""
    return getattr(getattr(layer, "source_cls", None), "__name__", "") == "Conv1D"


def _left_out(model: Any) -> list[str]:
    """Patterns of tensors that transformers leaves out of the language model of this config, such as a vision tower or
    a head that predicts several tokens. A sequence classifier of the same folder leaves them out too."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    return list(getattr(causal, "_keys_to_ignore_on_load_unexpected", None) or [])
