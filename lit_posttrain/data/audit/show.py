"""Rows as the trainer gets them: the text of their tokens, with the trained tokens marked."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import Response, Tree

OPENS, CLOSES = "[[", "]]"
_GREEN, _PLAIN = "\033[32m", "\033[0m"
_CHARACTERS = 1000  # of a run of tokens, half at its beginning and half at its end
_TOKENS = 12


def shown(tree: Tree, tokenizer: Tokenizer, colour: bool = False) -> str:
    """A tree as text: its prompt, then every response, with trained tokens between [[ and ]], in green if `colour`; and
    the first trained tokens of each response one by one."""
    prompt, loss_mask = tree.prompt.tolist(), tree.prompt_loss_mask
    parts = [f"{tree.source}: prompt, {len(prompt)} tokens", _marked(prompt, loss_mask, tokenizer, colour)]
    for number, response in enumerate(tree.responses, 1):
        ids, trained = response.tokens.tolist(), response.tokens[response.loss_mask].tolist()
        kind = f" {number} ({_standing(tree, response)})" if response.labels else ""
        one_by_one = " ".join(repr(_text([token], tokenizer)) for token in trained[:_TOKENS])
        more = f" and {len(trained) - _TOKENS} more" if len(trained) > _TOKENS else ""
        parts += [
            f"response{kind}, {len(ids)} tokens, {len(trained)} trained: {one_by_one}{more}",
            _marked(ids, response.loss_mask, tokenizer, colour),
        ]
    return "\n".join(parts)


def _standing(tree: Tree, response: Response) -> str:
    """What the data says of a response: its side of a pair, and its labels."""
    side, told = [], {"rank"}
    if any(other.label("flip_prob") == 0.5 for other in tree.responses):
        side, told = ["tie"], {"rank", "flip_prob"}
    elif [other.label("rank") for other in tree.responses] == [0, 1]:
        side = ["rejected" if response.label("rank") else "chosen"]
    labels = [f"{name} {value:g}" for name, value in response.labels.items() if not side or name not in told]
    return ", ".join([*side, *labels])


def _marked(ids: list[int], loss_mask: Any, tokenizer: Tokenizer, colour: bool) -> str:
    told = []
    for trained, run in groupby(range(len(ids)), lambda i: loss_mask is not None and bool(loss_mask[i])):
        text = _shortened(_text([ids[i] for i in run], tokenizer))
        told.append(_trained(text, colour) if trained else text)
    return "".join(told)


def _trained(text: str, colour: bool) -> str:
    return f"{_GREEN}{OPENS}{text}{CLOSES}{_PLAIN}" if colour else f"{OPENS}{text}{CLOSES}"


def _text(ids: list[int], tokenizer: Tokenizer) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _shortened(text: str) -> str:
    if len(text) <= _CHARACTERS:
        return text
    half = _CHARACTERS // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters) ... {text[-half:]}"
