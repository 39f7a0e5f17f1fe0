"""What rendering hands to tokenising."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_posttrain.tokenizer import Tokenizer

TrainOn = Literal["assistant", "last", "completion", "all", "nothing"]


@dataclass(slots=True)
class Rendered:
    """Text to be tokenised. turns: (start, end) in characters of every trained turn, in order.

    marks: spans within the turns that the template marks, the only ones trained on; None: the whole turns are.
    plain: no chat template was used; the tokenizer adds special tokens and an end-of-sequence token.
    apart: what precedes the only turn is tokenised separately, as in generation.
    scored: read by a reward model, for which a token across prompt and answer stays one token.
    everything: every token is trained on; `turns` only says where the prompt ends.
    unanswered: a prompt alone, to be answered.
    """

    text: str
    turns: list[tuple[int, int]]
    marks: list[tuple[int, int]] | None = None
    plain: bool = False
    apart: bool = False
    scored: bool = False
    everything: bool = False
    unanswered: bool = False


def special_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Ids and names of all special tokens of the tokenizer."""
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
