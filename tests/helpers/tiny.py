"""Tiny tokenizers and models, made on the spot: nothing is downloaded and every test runs in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

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


def save_model(folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a tiny Llama with random weights and its tokenizer as a Hugging Face folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(llama_config(**config))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
