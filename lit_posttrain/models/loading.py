"""From a ModelSpec to a Policy, a Scorer or a ValueModel: the pretrained model with added tokens and adapters."""

from __future__ import annotations

from typing import Any

import torch

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models import pretrained
from lit_posttrain.models.adapter_folders import resolve
from lit_posttrain.models.adapters import add_adapters
from lit_posttrain.models.architectures import refuse_cudnn_attention
from lit_posttrain.models.dropout import without_dropout
from lit_posttrain.models.model_config import Head, declares_score, read_config
from lit_posttrain.models.policy import Policy, Scorer, ValueModel
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import added_tokens


def load_config(spec: ModelSpec, head: Head = "lm") -> Any:
    """The transformers config of a model, as `read_config`."""
    return read_config(spec, resolve(spec.path, spec.trust_remote_code), head)


def require_trainable(spec: ModelSpec) -> None:
    """Refuse a quantized model without adapters: none of its weights would be trained.

    Raises:
        PostTrainError: if the spec quantizes the model, or its files are quantized.
    """
    if spec.lora is not None:
        return
    if spec.quantization:
        raise PostTrainError(
            f"quantization {spec.quantization} freezes the weights of {spec.path}, so nothing would be trained; add "
            "adapters to it, for the policy with --model.policy.lora.r 16"
        )
    packed = getattr(load_config(spec, "score"), "quantization_config", None)
    if packed is not None:
        kind = packed.get("quant_method") if isinstance(packed, dict) else type(packed).__name__
        raise PostTrainError(
            f"the weights of {spec.path} are quantized ({kind}), so they stay as they are and nothing would be "
            "trained; add adapters to it, for the policy with --model.policy.lora.r 16, or take the model's "
            "unquantized folder"
        )


def has_score_head(spec: ModelSpec) -> bool:
    """True if a model is a reward model: one that was saved with a score head."""
    return declares_score(load_config(spec, "score"))


def build_policy(spec: ModelSpec, vocabulary: int, *, meta: bool = False, device_type: str = "cpu") -> Policy:
    """Load the language model of a spec and wrap it.

    vocabulary: number of tokens of the tokenizer; embeddings grow when it exceeds the model's (their new rows are
        drawn around the mean of the old ones, as transformers does).
    meta: build only the structure, on the meta device without weights.
    device_type: the device that it will run on, which decides the attention implementation.

    Raises:
        PostTrainError: for options of the spec that exclude each other; as `load_model`.
    """
    return Policy(_trainable(spec, vocabulary, "lm", meta, device_type))


def build_scorer(spec: ModelSpec, vocabulary: int, *, meta: bool = False, device_type: str = "cpu") -> Scorer:
    """Load a reward model, or put a new score head on a language model; arguments and errors as for `build_policy`."""
    return Scorer(_trainable(spec, vocabulary, "score", meta, device_type))


def build_value_model(spec: ModelSpec, vocabulary: int, *, meta: bool = False, device_type: str = "cpu") -> ValueModel:
    """A critic that begins as a reward model, or as a language model with a new score head; arguments and errors as for
    `build_policy`."""
    return ValueModel(_trainable(spec, vocabulary, "score", meta, device_type))


def _trainable(spec: ModelSpec, vocabulary: int, head: Head, meta: bool, device_type: str) -> Any:
    if device_type == "cuda":
        refuse_cudnn_attention()
    if spec.random_init and spec.lora is not None:
        raise PostTrainError(
            "random_init draws the base anew whenever a checkpoint is loaded, and adapters are saved without it; "
            "train all weights (no lora), or start from a saved model"
        )
    place = resolve(spec.path, spec.trust_remote_code)
    make = pretrained.empty_model if meta else pretrained.load_model
    model = make(spec, place, head, device_type)
    if spec.lora is not None:
        _require_no_new_tokens(spec, vocabulary, model.get_input_embeddings().num_embeddings)
    if vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary)
    if spec.dropout is False:
        without_dropout(model)
    if spec.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if spec.lora is not None:
        if head == "score":  # trained whole, so no bfloat16
            model.score.to(torch.promote_types(model.score.weight.dtype, torch.float32))
        model = add_adapters(model, spec.lora, head)
    model.train()
    return model


def _require_no_new_tokens(spec: ModelSpec, vocabulary: int, rows: int) -> None:
    """Refuse new tokens with adapters, which would leave their embeddings untrained: random rows, or padding."""
    try:
        added = added_tokens(spec)
    except PostTrainError:  # the model has no tokenizer of its own to compare with
        added = []
    if added or vocabulary > rows:
        named = f" ({', '.join(added[:3])}{', ...' if len(added) > 3 else ''})" if added else ""
        raise PostTrainError(
            f"the tokenizer has more tokens than the model knows{named}, and adapters would leave their embeddings "
            "untrained; train all weights (no --model.policy.lora), or use a template whose tokens the model knows"
        )
