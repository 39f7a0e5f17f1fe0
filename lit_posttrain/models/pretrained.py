"""From a folder, a hub name or a GGUF file to a transformers model, with every weight accounted for."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.architectures import attention_implementation
from lit_posttrain.models.gguf_file import require_all_read
from lit_posttrain.models.model_config import Head, declares_score, read_config, require_classifier
from lit_posttrain.models.paths import Place, made_once
from lit_posttrain.models.precision import keep_scales, quantization_config, torch_dtype
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.weights import check_loaded, load_report, require_shapes


def load_model(spec: ModelSpec, place: Place, head: Head, device_type: str) -> Any:
    """The transformers model at `place`, in the spec's dtype and quantization; a score head that it lacks is drawn.

    Raises:
        PostTrainError: for files that are damaged, lack weights or hold others, and for the wrong kind of model.
    """
    config = _config(spec, place, head)
    where, gguf = place.where, place.gguf
    options: dict[str, Any] = {}
    if gguf:
        options = {"gguf_file": gguf, **_unpacked()}
    if spec.quantization:
        if gguf:
            where, options = str(_dense_folder(spec, place)), {}
        options["quantization_config"] = quantization_config(spec)
    if head == "score":
        options["num_labels"] = 1
    implementation = attention_implementation(spec.attention, config, device_type)
    if spec.random_init:
        with _explained(spec), torch.device("cpu"):
            fresh = _auto_class(head).from_config(
                config, attn_implementation=implementation, trust_remote_code=spec.trust_remote_code
            )
        return _with_new_head(fresh.to(torch_dtype(spec))) if head == "score" else fresh.to(torch_dtype(spec))
    with _explained(spec), _quiet_progress() if gguf else nullcontext():
        model, info = _auto_class(head).from_pretrained(
            where,
            revision=spec.revision,
            dtype=torch_dtype(spec),
            attn_implementation=implementation,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, which says more than the error would
            **options,
        )
    begins = head == "score" and not declares_score(config) and "score.weight" in info["missing_keys"]
    spare = _lm_head(config, spec.trust_remote_code) if head == "score" and info["unexpected_keys"] else []
    check_loaded(model, info, spec.path, new=["score."] if begins else [], spare=spare)
    if "quantization_config" in options or getattr(model, "hf_quantizer", None) is not None:
        # transformers compares no shapes then
        require_shapes(model, empty_model(spec, place, head, device_type), spec.path)
    if gguf and not spec.quantization:
        require_all_read(Path(where) / gguf, model)
    keep_scales(model)
    return _with_new_head(model) if begins else model


def empty_model(spec: ModelSpec, place: Place, head: Head, device_type: str) -> Any:
    """The structure of the model on the meta device, without weights. Errors as for `load_model`."""
    config = _config(spec, place, head)
    with _explained(spec), torch.device("meta"):
        model = _auto_class(head).from_config(
            config,
            attn_implementation=attention_implementation(spec.attention, config, device_type),
            trust_remote_code=spec.trust_remote_code,
        )
    return model.to(torch_dtype(spec))


def _config(spec: ModelSpec, place: Place, head: Head) -> Any:
    config = read_config(spec, place, head)
    if head == "score":
        require_classifier(spec, config)
    return config


def _auto_class(head: Head) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification


def _unpacked() -> dict[str, Any]:
    """The options with which transformers dequantizes a GGUF file. Versions without GgufConfig always do."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _dense_folder(spec: ModelSpec, place: Place) -> Path:
    """bitsandbytes quantizes while transformers loads a dense folder, so a GGUF file is unpacked into the cache."""
    dense = replace(spec, quantization=None, dtype="float32", random_init=False, attention="sdpa")

    def unpack(folder: Path) -> None:
        load_model(dense, place, "lm", "cpu").save_pretrained(folder)

    return made_once(Path(place.where) / str(place.gguf), "dense", unpack)


def _lm_head(config: Any, trust_remote_code: bool) -> list[str]:
    """Prefixes of the names of the language model's output head, which a scorer does not have."""
    with torch.device("meta"):
        model = _auto_class("lm").from_config(config, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if head is not None and module is head]
    return [f"{name}." for name in (*names, "embed_out")]  # as files of GPT-NeoX call it


@contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Turn any exception of a library that builds a model into a one-line error."""
    with load_report() as report:
        try:
            yield
        except (PostTrainError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as problem:  # config and files that are damaged break it anywhere
            told = f"could not load the model at {spec.path}: {first_line(problem)}"
            if isinstance(problem, pickle.UnpicklingError):
                told = f"the model at {spec.path}: pytorch_model.bin is damaged, or holds more than weights"
            if report.conversions:
                told = f"the model at {spec.path}: its files do not hold what makes these tensors: {report.conversions}"
            raise PostTrainError(told) from problem


def _with_new_head(model: Any) -> Any:
    """A score head drawn from N(0, 1/(width + 1)) (Stiennon et al. 2020), the same one whenever it is built."""
    weight = model.score.weight
    # on the CPU also within Lightning's device context: a generator of its own kind, and the same numbers everywhere
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        weight.copy_(drawn / (weight.shape[1] + 1) ** 0.5)
    return model


def _quiet_progress() -> AbstractContextManager[Any]:
    """Hide the progress bar of unpacking a GGUF file, which no setting of transformers switches off."""
    return redirect_stderr(StringIO())
