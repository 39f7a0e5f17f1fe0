"""The probability that a model's reply is one of a few short answers.

An answer may be several tokens, such as "10" where digits are tokens: its probability is their product, and that of
"1" is without what goes on to "10". An answer counts with and without a space before it, as chat templates differ in
what stands before a reply. All is computed in the model's own precision, without autocast: bfloat16 has so few digits
that different items get the very same probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from lit_posttrain.rollout.hf import HFEngine, left_pad
from lit_posttrain.tokenizer import Tokenizer

Tokens = tuple[int, ...]


def spellings(tokenizer: Tokenizer, choices: Sequence[str]) -> dict[str, list[Tokens]]:
    """By choice the token sequences that say it."""
    return {
        choice: list(
            dict.fromkeys(
                tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (choice, f" {choice}")
            )
        )
        for choice in choices
    }


@torch.no_grad()
def choice_masses(
    engine: HFEngine, prompts: Sequence[Sequence[int]], choices: Sequence[Mapping[str, Sequence[Tokens]]]
) -> list[tuple[dict[str, float], int]]:
    """For each prompt (token ids) the probability of each of its choices, not normalised, and the likeliest first token
    of a reply. choices: for each prompt its choices as `spellings` gives them."""
    wanted = [(place, prefix) for place, spelt in enumerate(choices) for prefix in sorted(_prefixes(spelt), key=len)]
    rows = [[*prompts[place], *prefix] for place, prefix in wanted]
    after: list[dict[Tokens, torch.Tensor]] = [{} for _ in prompts]  # log-probs (V,) of the token behind a prefix
    for members in engine.batches([len(row) for row in rows], engine.batch_size):
        logits = _logits(engine, [rows[i] for i in members])
        for index, own in zip(members, logits.float().log_softmax(-1).cpu(), strict=True):
            place, prefix = wanted[index]
            after[place][prefix] = own
    return [(_exclusive(spelt, own), int(own[()].argmax())) for spelt, own in zip(choices, after, strict=True)]


def _prefixes(spelt: Mapping[str, Sequence[Tokens]]) -> set[Tokens]:
    """What comes before each token of the choices."""
    return {tokens[:size] for said in spelt.values() for tokens in said for size in range(len(tokens))}


def _logits(engine: HFEngine, rows: list[list[int]]) -> torch.Tensor:
    """(B, V) logits behind the last token of each row."""
    ids, mask = left_pad(rows, next(engine.policy.parameters()).device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return engine.policy.decode(ids, engine.visible(mask), positions, None).logits


def _exclusive(spelt: Mapping[str, Sequence[Tokens]], after: Mapping[Tokens, torch.Tensor]) -> dict[str, float]:
    """By choice the probability that a reply begins with it and does not go on to a longer choice."""
    every = sorted({tokens for said in spelt.values() for tokens in said}, key=len, reverse=True)
    own: dict[Tokens, float] = {}
    for tokens in every:
        logprob = math.fsum(float(after[tokens[:place]][token]) for place, token in enumerate(tokens))
        longer = math.fsum(own[other] for other in own if other[: len(tokens)] == tokens)
        own[tokens] = max(math.exp(logprob) - longer, 0.0)
    return {choice: math.fsum(own[tokens] for tokens in said) for choice, said in spelt.items()}
