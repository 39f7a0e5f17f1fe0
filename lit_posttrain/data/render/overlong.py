"""Conversations that are longer than `max_length`: drop them, cut them at the end, or split them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lit_posttrain.types import Response, Tree

TOO_LONG = "longer than max_length"
PROMPT_TOO_LONG = "prompt alone fills max_length"
RESPONSE_TOO_LONG = "response alone fills max_length"
NOTHING_LEFT = "max_length cuts every trained token"


@dataclass(slots=True)
class Fitted:
    """trees: what is left of a tree. dropped: the reason if nothing is. cut, split: 1 if that was done. empty_pieces:
    pieces without a trained token, left out."""

    trees: list[Tree] = field(default_factory=list)
    dropped: str = ""
    cut: int = 0
    split: int = 0
    empty_pieces: int = 0


def fit(tree: Tree, max_length: int, overlong: Literal["drop", "cut", "split"]) -> Fitted:
    """Make a tree with one response at most `max_length` tokens long."""
    response = tree.responses[0]
    prompt = len(tree.prompt)
    if prompt + len(response.tokens) <= max_length:
        return Fitted([tree])
    if overlong == "split":
        return _split(tree, max_length)
    if prompt >= max_length and tree.prompt_loss_mask is None:
        return Fitted(dropped=PROMPT_TOO_LONG)
    if overlong == "drop":
        return Fitted(dropped=TOO_LONG)
    pieces = _split(tree, max_length, only_first=True)
    return Fitted(pieces.trees, cut=1) if pieces.trees else Fitted(dropped=NOTHING_LEFT)


def fit_comparison(tree: Tree, max_length: int, overlong: Literal["drop", "cut_prompt"]) -> Fitted:
    """Make a prompt with its longest response at most `max_length` tokens long. A response is never cut."""
    longest = max(len(response.tokens) for response in tree.responses)
    if len(tree.prompt) + longest <= max_length:
        return Fitted([tree])
    if overlong == "drop":
        return Fitted(dropped=TOO_LONG)
    if longest >= max_length:
        return Fitted(dropped=RESPONSE_TOO_LONG)
    marks = tree.prompt_loss_mask
    kept = slice(len(tree.prompt) - (max_length - longest), None)
    cut = Tree(tree.prompt[kept], tree.responses, None if marks is None else marks[kept], tree.file, tree.line)
    return Fitted([cut], cut=1)


def _split(tree: Tree, max_length: int, only_first: bool = False) -> Fitted:
    """Consecutive pieces of `max_length` tokens. No state predicts a piece's first token, so that each later piece has
    one target less."""
    response = tree.responses[0]
    trunk = np.zeros(len(tree.prompt), np.bool_) if tree.prompt_loss_mask is None else tree.prompt_loss_mask
    tokens, loss_mask = np.concatenate([tree.prompt, response.tokens]), np.concatenate([trunk, response.loss_mask])
    made = Fitted(split=1)
    for start in range(0, 1 if only_first else len(tokens), max_length):
        piece, mask = tokens[start : start + max_length], loss_mask[start : start + max_length]
        if not mask[1:].any():
            made.empty_pieces += 1
            continue
        # the first piece keeps its prompt as the prompt, a later one starts in the middle of something
        whole = tree.prompt_loss_mask is not None
        first = len(tree.prompt) if start == 0 else max(int(np.flatnonzero(mask)[0]), 1)
        first = min(first, len(piece) - 1)
        last = len(mask) if whole else int(np.flatnonzero(mask)[-1]) + 1
        made.trees.append(
            Tree(
                prompt=piece[:first],
                responses=[Response(piece[first:last], mask[first:last], response.labels)],
                prompt_loss_mask=mask[:first] if whole else None,
                file=tree.file,
                line=tree.line,
            )
        )
    if not made.trees:
        return Fitted(dropped=NOTHING_LEFT)
    return made
