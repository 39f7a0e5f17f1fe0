"""Proof of an export: what the trained model answers, and the written folder once it is loaded as its user will.

Every step on the way (unpacking, merging, reading back) is compared by itself, in float32 arithmetic, so that a wrong
step shows however coarse the type of the written weights is. Only logits are kept from step to step: one model at a
time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.loading import (
    compute_in_float32,
    keep_scales,
    max_positions,
    quantization_config,
    torch_dtype,
)
from lit_posttrain.models.policy import Scorer
from lit_posttrain.models.spec import ModelSpec

_SHORT, _LONG = 12, 16  # tokens of the two sequences
_ARITHMETIC = 1e-4  # float32 sums in another order, as a share of the largest logit
_INT8 = 0.25  # LLM.int8 rounds activations too, and its dense twin does not
_REPORT = "please report it with the run's config.yaml; its checkpoint works in generate and chat"
_PROBE = "The quick brown fox: 3 + 4 = 7.\n"


class Proof:
    """Logits of two short sequences (scores, of a reward model), and how far they have moved since training.

    what: "logit" or "score". difference: the greatest one between the trained model and the last that was compared.
    scale: the largest logit of the trained model, at least 1.
    """

    def __init__(self, trained: Any, spec: ModelSpec, vocabulary: int) -> None:
        """trained: the `Policy` or `Scorer` as it was restored. vocabulary: number of its tokenizer's tokens."""
        self.spec, self.scored = spec, isinstance(trained, Scorer)
        self.what = "score" if self.scored else "logit"
        embeddings = trained.transformer.get_input_embeddings()
        known = min(vocabulary, embeddings.weight.shape[0], getattr(embeddings, "num_embeddings", vocabulary))
        length = min(_LONG, max_positions(trained.config) or _LONG)
        draw = torch.Generator(device="cpu").manual_seed(0)
        self.ids = torch.randint(known, (2, length), generator=draw, device="cpu")
        self.ids[1, -1] = known - 1  # among the added tokens, where there are any
        self.trained = self._last = self.answers(trained.transformer)
        self.scale = max(float(self.trained.abs().max()), 1.0)
        self.difference = 0.0
        # sdpa leaves out Gemma 2's soft capping: who loads it gets another attention than it was trained with
        self.attention = trained.config._attn_implementation

    @torch.no_grad()
    def answers(self, model: Any) -> Tensor:
        """(2, tokens, vocabulary) float64 logits of a transformers model, or (2,) scores, in at least float32."""
        model = _precise(model)
        if self.scored:
            head, body = model.score, model.base_model
            rows = [row[:size][None].to(model.device) for row, size in zip(self.ids, (_SHORT, _LONG), strict=True)]
            found = [head(body(input_ids=row).last_hidden_state[:, -1]).flatten() for row in rows]
            return torch.cat(found).double().cpu()
        logits: Tensor = model(input_ids=self.ids.to(model.device)).logits
        return logits.double().cpu()

    @torch.no_grad()
    def padded_scores(self, model: Any, padding: int) -> Tensor:
        """(2,) scores as people compute them with plain transformers: of a padded batch."""
        mask = torch.ones_like(self.ids)
        mask[0, _SHORT:] = 0
        ids = torch.where(mask.bool(), self.ids, padding)
        scores: Tensor = _precise(model)(input_ids=ids, attention_mask=mask).logits
        return scores.flatten().double()

    def compare(self, step: str, found: Tensor, tolerance: float = _ARITHMETIC, advice: str = _REPORT) -> None:
        """Take a step: what is found must be what the last step found.

        Raises:
            PostTrainError: if it is not, by more than `tolerance` as a share of the largest logit.
        """
        shared = min(found.shape[-1], self._last.shape[-1])  # padding may have added columns
        moved = float((found[..., :shared] - self._last[..., :shared]).abs().max())
        if not moved <= tolerance * self.scale:  # nor NaN
            raise PostTrainError(
                f"export would write another model than was trained, so nothing is written: after {step} its "
                f"{self.what}s differ by {moved:.3g}, where rounding is at most {tolerance * self.scale:.2g} (the "
                f"largest {self.what} is {self.scale:.3g}); {advice}"
            )
        self._last = found
        self.difference = float((found[..., :shared] - self.trained[..., :shared]).abs().max())

    def compare_rounded(self, what: str, dtype: torch.dtype, found: Tensor) -> None:
        """Take the step of rounding to a type, which moves logits a little; overflow shows.

        Raises:
            PostTrainError: as `compare`.
        """
        tolerance = max(32 * torch.finfo(dtype).eps, _ARITHMETIC)
        self.compare(
            f"rounding {what} to {str(dtype)[6:]}", found, tolerance, "choose another --dtype, such as float32"
        )


def unpacking_tolerance(spec: ModelSpec) -> float:
    """By how much a dense model may differ from the quantized one of the same weights: by what the latter rounds when
    it computes."""
    return _INT8 if spec.quantization == "int8" else _ARITHMETIC


def load_model(folder: Path, proof: Proof) -> Any:
    """The model of a written folder, in float32, by plain transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForSequenceClassification if proof.scored else AutoModelForCausalLM
    options = {"attn_implementation": proof.attention, "trust_remote_code": proof.spec.trust_remote_code}
    load = partial(kind.from_pretrained, folder, dtype=torch.float32, **options)
    return _loaded(load, "model").eval()


def load_adapter(folder: Path, proof: Proof) -> Any:
    """The base that a written adapter names with the adapter on it, by plain peft; quantized as it was in training."""
    from peft import AutoPeftModelForCausalLM

    spec = proof.spec
    options: dict[str, Any] = {"dtype": torch_dtype(spec), "trust_remote_code": spec.trust_remote_code}
    options["attn_implementation"] = proof.attention
    if spec.quantization:
        options["quantization_config"] = quantization_config(spec)
    load = partial(AutoPeftModelForCausalLM.from_pretrained, str(folder), **options)
    model = _loaded(load, "adapter").get_base_model().eval()
    keep_scales(model)
    return model


def check_tokenizer(folder: Path, tokenizer: Any, trust_remote_code: bool) -> None:
    """The written tokenizer must read text as the trained one does.

    Raises:
        PostTrainError: if it does not.
    """
    from transformers import AutoTokenizer

    load = partial(AutoTokenizer.from_pretrained, folder, trust_remote_code=trust_remote_code)
    again = _told(_loaded(load, "tokenizer"))
    for what, before in _told(tokenizer).items():
        if again[what] != before:
            raise PostTrainError(
                f"the tokenizer would not be exported as it is: its {what} is {str(again[what])[:80]!r} when it is "
                f"read back, and was {str(before)[:80]!r}; nothing was written"
            )


def _told(tokenizer: Any) -> dict[str, Any]:
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


def _precise(model: Any) -> Any:
    """In at least float32, as far as a model can be: in place."""
    if model.dtype in (torch.bfloat16, torch.float16):
        compute_in_float32(model)
    return model
