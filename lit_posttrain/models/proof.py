"""Proof that a model that was converted computes the same: its logits before and after every step.

Every step (unpacking, merging, reading back) is compared by itself in float32, so that an error shows even if the saved
weights have few bits. Only logits are kept between steps, so that one model at a time is in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.model_config import max_positions
from lit_posttrain.models.policy import Scorer
from lit_posttrain.models.precision import compute_in_float32

_SHORT, _LONG = 12, 16  # tokens of the two sequences
ARITHMETIC = 1e-4  # float32 sums in another order, as a share of the largest logit
_REPORT = "please report it with the run's config.yaml; its checkpoint works in generate and chat"


class Proof:
    """Logits of two short sequences (scores, of a reward model), and how far they have moved since the first model.

    what: "logit" or "score". difference: the largest one between the trained model and the one compared last.
    scale: the largest logit of the trained model, at least 1.
    """

    def __init__(self, trained: Any, vocabulary: int, failed: str) -> None:
        """trained: the `Policy` or `Scorer` that was trained. vocabulary: number of its tokenizer's tokens. failed:
        begins the error of a step that goes wrong.

        Raises:
            PostTrainError: for a model whose logits are not finite.
        """
        self.failed, self.scored = failed, isinstance(trained, Scorer)
        self.what = "score" if self.scored else "logit"
        embeddings = trained.transformer.get_input_embeddings()
        known = min(vocabulary, embeddings.weight.shape[0], getattr(embeddings, "num_embeddings", vocabulary))
        length = min(_LONG, max_positions(trained.config) or _LONG)
        draw = torch.Generator(device="cpu").manual_seed(0)
        self.ids = torch.randint(known, (2, length), generator=draw, device="cpu")
        self.ids[1, -1] = known - 1  # among the added tokens, where there are any
        self.trained = self._last = self.answers(trained.transformer)
        if not bool(torch.isfinite(self.trained).all()):
            raise PostTrainError(
                f"{failed}: the {self.what}s of the trained model are NaN or infinite, as after a training that "
                "diverged; take an earlier checkpoint"
            )
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
        """(2,) scores of a padded batch, as plain transformers computes them."""
        mask = torch.ones_like(self.ids)
        mask[0, _SHORT:] = 0
        ids = torch.where(mask.bool(), self.ids, padding)
        scores: Tensor = _precise(model)(input_ids=ids, attention_mask=mask).logits
        return scores.flatten().double()

    def compare(self, step: str, found: Tensor, tolerance: float = ARITHMETIC, advice: str = _REPORT) -> None:
        """Compare the logits after a step with those of the step before.

        Raises:
            PostTrainError: if they differ by more than `tolerance` times the largest logit.
        """
        moved = _distance(found, self._last)
        if not moved <= tolerance * self.scale:  # nor NaN
            raise PostTrainError(
                f"{self.failed}: after {step} its {self.what}s differ by {moved:.3g}, where rounding is at most "
                f"{tolerance * self.scale:.2g} (the largest {self.what} is {self.scale:.3g}); {advice}"
            )
        self._last = found
        self.difference = self.off(found)

    def off(self, found: Tensor) -> float:
        """The largest difference between these logits and those of the trained model."""
        return _distance(found, self.trained)

    def compare_rounded(self, what: str, dtype: torch.dtype, found: Tensor) -> None:
        """Compare the logits after rounding to a type: they may differ a little, and must not overflow.

        Raises:
            PostTrainError: as `compare`.
        """
        tolerance = max(32 * torch.finfo(dtype).eps, ARITHMETIC)
        self.compare(
            f"rounding {what} to {str(dtype)[6:]}", found, tolerance, "choose another --dtype, such as float32"
        )


def _distance(found: Tensor, expected: Tensor) -> float:
    shared = min(found.shape[-1], expected.shape[-1])  # padding may have added columns
    return float((found[..., :shared] - expected[..., :shared]).abs().max())


def _precise(model: Any) -> Any:
    """The model in at least float32, as far as it can be; in place."""
    half = torch.bfloat16, torch.float16
    if model.dtype in half or any(getattr(module, "compute_dtype", None) in half for module in model.modules()):
        compute_in_float32(model)
    return model
