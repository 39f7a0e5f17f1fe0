"""Check that a model has the settings of its GGUF file. For settings that are not in its table of an architecture,
transformers silently takes its own defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError

# of these sizes of Gemma 2 and 3 llama.cpp scales attention by the width of the model, not of the heads; no key says so
_GEMMA_27B = {"gemma2": 46, "gemma3": 62}


def require_settings(file: Path, architecture: str, values: Mapping[str, Any], config: Any, remedy: str) -> None:
    """Compare a file's settings with those of the model that was made of it.

    architecture: its name in the file. values: of its header. config: of the model. remedy: ends the message.

    Raises:
        PostTrainError: naming a setting that differs.
    """
    config = config.get_text_config(decoder=True)
    told: dict[str, Any] = {}
    for name, taken in _TAKEN.items():
        given = values.get(f"{architecture}.{name}")
        if isinstance(given, (bool, int, float)):
            told[name] = (given, taken(config))
    window = told.pop("attention.sliding_window", (0, 0))
    if _window(window[0], config) != _window(window[1], config):
        told["attention.sliding_window"] = window
    if architecture in _GEMMA_27B:
        width = config.hidden_size // config.num_attention_heads
        told["query_pre_attn_scalar"] = (
            width if config.num_hidden_layers == _GEMMA_27B[architecture] else config.head_dim,
            config.query_pre_attn_scalar,
        )
    for name, (given, has) in told.items():
        if has is not None and not math.isclose(given, has, rel_tol=1e-5):
            raise PostTrainError(
                f"the model at {file}: its {name} is {given:g}, and {has:g} in what transformers makes of it, which "
                f"would be another model; {remedy}"
            )


def _first(*names: str, default: float | None = None) -> Callable[[Any], float | None]:
    def taken(config: Any) -> float | None:
        found = (getattr(config, name, None) for name in names)
        return next((float(value) for value in found if value is not None), default)

    return taken


def _rope(kind: str, name: str) -> Callable[[Any], float | None]:
    def taken(config: Any) -> float | None:
        rope = getattr(config, "rope_parameters", None) or {}
        value = rope.get(kind, rope).get(name)
        return None if value is None else float(value)

    return taken


def _rotated(config: Any) -> float | None:
    """How many dimensions of a head have rotary positions; None if layers differ."""
    if "rope_theta" not in (getattr(config, "rope_parameters", None) or {}):
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = _rope("full_attention", "partial_rotary_factor")(config)
    return float(int(head * (1.0 if share is None else share)))


def _window(size: float | None, config: Any) -> float:
    """The attention window; None if it is 0 or longer than any sequence, that is without effect."""
    longest = getattr(config, "max_position_embeddings", None) or math.inf
    return math.inf if not size or size >= longest else size


# by their names in files: what the model computes with; None where it has no such setting by any known name
_TAKEN: dict[str, Callable[[Any], float | None]] = {
    "rope.freq_base": _rope("full_attention", "rope_theta"),
    "rope.freq_base_swa": _rope("sliding_attention", "rope_theta"),
    "rope.dimension_count": _rotated,
    "attention.head_count": _first("num_attention_heads"),
    "attention.head_count_kv": _first("num_key_value_heads"),
    "attention.layer_norm_epsilon": _first("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"),
    "attention.layer_norm_rms_epsilon": _first("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": _first("sliding_window", default=0.0),
    "attention.scale": _first("attention_multiplier"),
    "attention.clamp_kqv": _first("clip_qkv", default=0.0),
    "attention.max_alibi_bias": _first("alibi_bias_max", default=0.0),
    "attn_logit_softcapping": _first("attn_logit_softcapping", default=0.0),
    "final_logit_softcapping": _first("final_logit_softcapping", default=0.0),
    "logit_scale": _first("logit_scale", "logits_scaling", default=1.0),
    "embedding_scale": _first("embedding_multiplier", default=1.0),
    "residual_scale": _first("residual_multiplier", default=1.0),
    "use_parallel_residual": _first("use_parallel_residual"),
    "expert_used_count": _first("num_experts_per_tok"),
    "expert_weights_scale": _first("routed_scaling_factor", default=1.0),
    "expert_weights_norm": _first("norm_topk_prob"),
}
