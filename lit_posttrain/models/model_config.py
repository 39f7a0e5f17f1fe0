"""The transformers config of a model: what kind of model it is, and how long its sequences may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.gguf_file import INSTEAD, read_header
from lit_posttrain.models.paths import Place, not_found
from lit_posttrain.models.spec import ModelSpec

Head = Literal["lm", "score"]


def read_config(spec: ModelSpec, place: Place, head: Head = "lm") -> Any:
    """The config of the model at `place`. With the head "score" it may be a reward model; else it must be a language
    model.

    Raises:
        PostTrainError: if there is no model at the path, or it is not a causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    where, gguf = place.where, place.gguf
    options = {"gguf_file": gguf} if gguf else {}
    if gguf:
        read_header(Path(where) / gguf)
    if spec.revision is not None and Path(where).exists():
        raise PostTrainError(f"revision {spec.revision}: {spec.path} lies here, and only models of the hub have any")
    try:
        config = AutoConfig.from_pretrained(
            where, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **options
        )
    except Exception as problem:  # a damaged file breaks a library anywhere
        reason = f"{first_line(problem).removesuffix('.')}; {INSTEAD}" if gguf else first_line(problem)
        raise not_found(spec.path, reason) from problem
    # not only its text part: the architecture is that of the class that AutoModel builds, which may see images too
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    declared = getattr(config, "architectures", None) or []
    causal = not declared or any("CausalLM" in name or "LMHead" in name or "Conditional" in name for name in declared)
    if declares_score(config):
        if head == "lm":
            raise PostTrainError(
                f"{spec.path} is a reward model or classifier, which cannot write; name a language model"
            )
        if getattr(config, "num_labels", 1) != 1:
            raise PostTrainError(f"{spec.path} has {config.num_labels} labels; a reward model has one")
        causal = True
    if not spec.trust_remote_code and not (known and causal and not getattr(config, "is_encoder_decoder", False)):
        raise PostTrainError(
            f"{spec.path} is a {config.model_type} model ({', '.join(declared) or 'no architecture named'}), which is "
            "not a causal language model; name a decoder such as a Llama or Qwen"
        )
    if head == "score":
        config.num_labels = 1
    return config


def declares_score(config: Any) -> bool:
    """True for the config of a reward model or another sequence classifier."""
    return any("SequenceClassification" in name for name in getattr(config, "architectures", None) or [])


def require_classifier(spec: ModelSpec, config: Any) -> None:
    """Refuse an architecture that cannot have a score head.

    Raises:
        PostTrainError: if transformers has no sequence classifier of it.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if not spec.trust_remote_code and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise PostTrainError(
            f"{spec.path}: transformers has no sequence classifier of {config.model_type} models, so none can become a "
            "reward model or a critic; name another"
        )


def max_positions(config: Any) -> int | None:
    """The longest sequence that a model takes, in tokens; None if its config has no limit."""
    config = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None
