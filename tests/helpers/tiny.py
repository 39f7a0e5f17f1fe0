"""Tiny tokenizers and models, made on the spot: nothing is downloaded and every test runs in milliseconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)

from lit_posttrain.models.loading import build_scorer
from lit_posttrain.models.spec import ModelSpec

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
_TEXT = [
    "system user assistant question answer what is the name of a colour and how many are there in it",
    "The quick brown fox jumps over the lazy dog while seven wizards brew strong potions at night.",
    "1 2 3 4 5 6 7 8 9 10 11 12 plus minus times equals one two three four five six seven eight nine ten",
]


def tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 400 tokens with ChatML's special tokens; pad, bos and eos are distinct."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        _TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=alphabet)
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    made.chat_template = chat_template
    return made


def llama_config(vocab_size: int = 512, **changes: Any) -> LlamaConfig:
    """A two-layer Llama with grouped-query attention."""
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        **changes,
    }
    return LlamaConfig(**values)


def mixtral_config(**changes: Any) -> MixtralConfig:
    """A two-layer mixture of four experts, two of them for a token."""
    values: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        **changes,
    }
    return MixtralConfig(**values)


def save_model(folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a tiny Llama with random weights and its tokenizer as a Hugging Face folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(llama_config(**config))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_scorer(base: Path, folder: Path, chat_template: str | None = CHATML) -> Path:
    """Write a tiny reward model over a saved model, with a head of random weights."""
    scorer = build_scorer(ModelSpec(str(base)), 512)
    scorer.transformer.config.pad_token_id = 0
    scorer.transformer.save_pretrained(folder)
    tokenizer(chat_template).save_pretrained(folder)
    return folder


def save_gguf(
    model: Path,
    file: Path,
    change: Callable[[dict[str, Tensor]], None] | None = None,
    rope_scaling: str | None = None,
    add_bos: bool | None = None,
    splitter: str | None = None,
    settings: Mapping[str, float] | None = None,
) -> Path:
    """Write a tiny Llama's folder as a GGUF file in float32; change: edits the tensors, by their GGUF names;
    rope_scaling, add_bos, splitter (tokenizer.ggml.pre): what the header says of it; settings: more of the header's
    numbers, by their names without the architecture."""
    config, spoken = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, value in load_file(model / "model.safetensors").items():
        kind = next((kind for kind in heads if kind in name), None)
        if kind is not None:  # GGUF keeps the halves of a rotated pair beside each other
            value = value.view(heads[kind], 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        tensors[names.get_name(name, try_suffixes=(".weight",))] = value
    if change is not None:
        change(tensors)
    core = json.loads(spoken.backend_tokenizer.to_str())["model"]
    tokens = sorted(core["vocab"], key=core["vocab"].get)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, number in {"rope.freq_base": 10000.0, **(settings or {})}.items():
        writer.add_float32(f"llama.{name}", number)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if rope_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope_scaling))
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    special = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([special[token not in _SPECIAL] for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_bos_token_id(spoken.bos_token_id)
    writer.add_eos_token_id(spoken.eos_token_id)
    writer.add_pad_token_id(spoken.pad_token_id)
    if splitter is not None:
        writer.add_tokenizer_pre(splitter)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_chat_template(spoken.chat_template)
    for name, value in tensors.items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


_OWN_CODE = """from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_own_code(model: Path, folder: Path) -> Path:
    """A copy of a model in `folder`, whose classes come with it: trust_remote_code runs them."""
    shutil.copytree(model, folder)
    (folder / "own.py").write_text(_OWN_CODE)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own_llama",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
