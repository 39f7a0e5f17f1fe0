"""From a ModelSpec to a Policy or a Scorer: hub, folder or GGUF; adapters; 4 and 8 bits; added tokens."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.adapters import add_adapters
from lit_posttrain.models.architectures import attention_implementation, refuse_cudnn_attention
from lit_posttrain.models.dropout import without_dropout
from lit_posttrain.models.gguf_file import INSTEAD, read_header, require_all_read
from lit_posttrain.models.paths import made_once, not_found, resolve
from lit_posttrain.models.policy import Policy, Scorer, ValueModel
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import added_tokens
from lit_posttrain.models.weights import check_loaded, load_report, require_shapes

Head = Literal["lm", "score"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


def torch_dtype(spec: ModelSpec) -> torch.dtype:
    """What a spec's weights are loaded in, where no trainer has decided on auto."""
    return DTYPES["float32" if spec.dtype == "auto" else spec.dtype]


def load_config(spec: ModelSpec, head: Head = "lm") -> Any:
    """The transformers config of a model. With a score head a reward model is welcome too.

    Raises:
        PostTrainError: if there is no model at the path, or it is not a causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    where, gguf = resolve(spec.path, trust_remote_code=spec.trust_remote_code)
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
    # kept whole: what AutoModel builds from it, a vision-language model say, decides the architecture
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    declared = getattr(config, "architectures", None) or []
    causal = not declared or any("CausalLM" in name or "LMHead" in name or "Conditional" in name for name in declared)
    if _declares_score(config):
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


def require_trainable(spec: ModelSpec) -> None:
    """Refuse a quantized model without adapters, of which nothing would be trained.

    Raises:
        PostTrainError: for one that is quantized as it is loaded, or that lies quantized.
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
    return _declares_score(load_config(spec, "score"))


def _declares_score(config: Any) -> bool:
    return any("SequenceClassification" in name for name in getattr(config, "architectures", None) or [])


def max_positions(config: Any) -> int | None:
    """The longest sequence a model takes, where its config says one."""
    config = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def build_policy(spec: ModelSpec, vocabulary: int, *, meta: bool = False, device_type: str = "cpu") -> Policy:
    """Load the language model of a spec and wrap it.

    vocabulary: number of tokens of the tokenizer; embeddings grow when it exceeds the model's (their new rows are
        drawn around the mean of the old ones, as transformers does).
    meta: build the module's structure on the meta device, without weights.
    device_type: where it will compute, which decides the attention implementation.

    Raises:
        PostTrainError: when parts of the spec do not go together.
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
    if head == "score":
        _require_classifier(spec)
    model = _empty_model(spec, head, device_type) if meta else _load_model(spec, head, device_type)
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


def _require_classifier(spec: ModelSpec) -> None:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = load_config(spec, "score")
    if not spec.trust_remote_code and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise PostTrainError(
            f"{spec.path}: transformers has no sequence classifier of {config.model_type} models, so none can become a "
            "reward model or a critic; name another"
        )


def _require_no_new_tokens(spec: ModelSpec, vocabulary: int, rows: int) -> None:
    """Adapters would leave the embeddings of new tokens as they are: rows that are drawn, or that are padding."""
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


def _auto_class(head: Head) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification


def _unpacked() -> dict[str, Any]:
    """The options with which transformers unpacks a GGUF file as it loads it. Versions without GgufConfig always do."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _load_model(spec: ModelSpec, head: Head, device_type: str) -> Any:
    config = load_config(spec, head)
    where, gguf = resolve(spec.path, trust_remote_code=spec.trust_remote_code)
    options: dict[str, Any] = {}
    if gguf:
        options = {"gguf_file": gguf, **_unpacked()}
    if spec.quantization:
        if gguf:
            where, options = str(_dense_folder(spec, Path(where) / gguf)), {}
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
    begins = head == "score" and not _declares_score(config) and "score.weight" in info["missing_keys"]
    spare = _lm_head(config, spec.trust_remote_code) if head == "score" and info["unexpected_keys"] else []
    check_loaded(model, info, spec.path, new=["score."] if begins else [], spare=spare)
    if "quantization_config" in options or getattr(model, "hf_quantizer", None) is not None:
        # transformers compares no shapes then
        require_shapes(model, _empty_model(spec, head, device_type), spec.path)
    if gguf and not spec.quantization:
        require_all_read(Path(where) / gguf, model)
    keep_scales(model)
    return _with_new_head(model) if begins else model


def keep_scales(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at their first evaluation on a processor with AVX512-BF16, which
    rounds their scales to bfloat16 for good: a validation would change the model that is being trained."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def compute_in_float32(model: nn.Module) -> None:
    """Let a model that is kept in bfloat16, or in 4 bits beside it, compute in float32 with the weights that it has."""
    nn.Module.float(model)  # transformers forbids it for quantized models, whose packed weights it leaves as they are
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "compute_dtype")]
    for layer in layers:
        if type(layer.weight).__name__ == "Params4bit":
            layer.compute_dtype = layer.weight.quant_state.dtype = torch.float32


def _lm_head(config: Any, trust_remote_code: bool) -> list[str]:
    """Beginnings of the names of the language model's output head, which a scorer leaves out."""
    with torch.device("meta"):
        model = _auto_class("lm").from_config(config, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if head is not None and module is head]
    return [f"{name}." for name in (*names, "embed_out")]  # as files of GPT-NeoX call it


@contextmanager
def _explained(spec: ModelSpec) -> Iterator[None]:
    """Make one line of whatever a library says while it builds a model."""
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
    """Unpacking GGUF draws a progress bar that no setting of transformers switches off."""
    return redirect_stderr(StringIO())


def _empty_model(spec: ModelSpec, head: Head, device_type: str) -> Any:
    config = load_config(spec, head)
    with _explained(spec), torch.device("meta"):
        model = _auto_class(head).from_config(
            config,
            attn_implementation=attention_implementation(spec.attention, config, device_type),
            trust_remote_code=spec.trust_remote_code,
        )
    return model.to(torch_dtype(spec))


def quantization_config(spec: ModelSpec) -> Any:
    """How bitsandbytes quantizes the base of a spec."""
    from transformers import BitsAndBytesConfig

    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(spec),
    )


def _dense_folder(spec: ModelSpec, file: Path) -> Path:
    """bitsandbytes quantises while transformers loads a dense folder, so a GGUF file is unpacked into the cache."""

    dense = replace(spec, quantization=None, dtype="float32", random_init=False, attention="sdpa")

    def unpack(folder: Path) -> None:
        _load_model(dense, "lm", "cpu").save_pretrained(folder)

    return made_once(file, "dense", unpack)
