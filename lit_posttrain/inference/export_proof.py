"""Loads an exported folder as its user will, to compare it with the trained model: models, adapters and tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.precision import keep_scales, quantization_config, torch_dtype
from lit_posttrain.models.proof import Proof
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.tokenizer import Tokenizer

_PROBE = "The quick brown fox: 3 + 4 = 7.\n"


def load_model(folder: Path, proof: Proof, trust_remote_code: bool) -> Any:
    """The model of a written folder, in float32, by plain transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForSequenceClassification if proof.scored else AutoModelForCausalLM
    options = {"attn_implementation": proof.attention, "trust_remote_code": trust_remote_code}
    load = partial(kind.from_pretrained, folder, dtype=torch.float32, **options)
    return _loaded(load, "model").eval()


def load_adapter(folder: Path, proof: Proof, spec: ModelSpec, as_trained: bool = True) -> Any:
    """A written adapter on the base that it names, by plain peft. as_trained: with the base's dtype and quantization of
    training, instead of peft's defaults."""
    from peft import AutoPeftModelForCausalLM

    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code, "attn_implementation": proof.attention}
    if as_trained:
        options["dtype"] = torch_dtype(spec)
    if as_trained and spec.quantization:
        options["quantization_config"] = quantization_config(spec)
    load = partial(AutoPeftModelForCausalLM.from_pretrained, str(folder), **options)
    model = _loaded(load, "adapter").get_base_model().eval()
    keep_scales(model)
    return model


def check_tokenizer(folder: Path, tokenizer: Tokenizer, trust_remote_code: bool) -> None:
    """Check that the written tokenizer reads text as the trained one does.

    Raises:
        PostTrainError: if it does not.
    """
    from transformers import AutoTokenizer

    load = partial(AutoTokenizer.from_pretrained, folder, trust_remote_code=trust_remote_code)
    again = _told(_loaded(load, "tokenizer"))
    special = tokenizer.added_tokens_decoder
    ordinary = [t for t in tokenizer.all_special_tokens if tokenizer.convert_tokens_to_ids(t) not in special]
    for what, before in _told(tokenizer).items():
        if again[what] != before and ordinary:
            raise PostTrainError(
                f"the tokenizer cannot be exported with the end token {', '.join(map(repr, ordinary))} "
                "(--model.policy.eos), an ordinary token: transformers would read it as a special one, and texts as "
                "other tokens. generate, chat and score take the checkpoint as it is; for an export train with a "
                "special token, which --model.policy.special_tokens can add"
            )
        if again[what] != before:
            raise PostTrainError(
                f"the tokenizer would not be exported as it is: its {what} is {str(again[what])[:80]!r} when it is "
                f"read back, and was {str(before)[:80]!r}; nothing was written"
            )


def _told(tokenizer: Tokenizer) -> dict[str, Any]:
    text = _PROBE + "".join(tokenizer.all_special_tokens)
    return {
        "length": len(tokenizer),
        "chat template": tokenizer.chat_template,
        "special tokens": (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token),
        "reading of a text": tokenizer(text)["input_ids"],
        "reading of a rendered chat": tokenizer(text, add_special_tokens=False)["input_ids"],
    }


def _loaded(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # whatever it is, a user of the folder would meet it
        raise PostTrainError(
            f"the {what} as written cannot be loaded ({first_line(problem)}); nothing was kept of it"
        ) from problem
