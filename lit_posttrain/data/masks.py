"""From a rendered text's tokens to a tree: where the prompt ends, and which tokens are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_posttrain.data.bad_rows import BadRow
from lit_posttrain.data.templates import NAME_A_TEMPLATE, Rendered, special_tokens
from lit_posttrain.types import Response, Tree

_MEMO_CHARACTERS = 64
_LOOK_BACK = 16


class TokenMask:
    """Makes trees of encodings of one tokenizer.

    ends: how many trained turns close with which end token; "" where there is none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.backend = plain_backend(tokenizer)
        self.ends: Counter[str] = Counter()
        self._eos: int | None = tokenizer.eos_token_id
        self._added = set(self.backend.get_added_tokens_decoder())
        self._special = special_tokens(tokenizer)
        self._memo: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str], plain: bool) -> list[Any]:
        """Encodings of texts. `plain`: the tokenizer adds its special tokens, which a chat template writes itself."""
        return list(self.backend.encode_batch(texts, add_special_tokens=plain))

    def tree(self, rendered: Rendered, encoding: Any, whole: bool = False) -> Tree:
        """A prompt and one response. The prompt is all before the first trained token, the response ends with the
        last trained one: what stands behind it cannot change a likelihood. whole: keep that too, for a score is read
        at the text's last token. An unanswered prompt has no response.

        Raises:
            BadRow: nothing to train on, or a prompt whose tokens are not the first tokens of the conversation.
        """
        ids: list[int] = encoding.ids
        if rendered.unanswered:
            end = len(ids) - (rendered.plain and ids[-1:] == [self._eos])  # some tokenizers write one behind any text
            if end == 0:
                raise BadRow("empty prompt", "no token to go on from; fill or remove the row")
            return Tree(np.array(ids[:end], dtype=np.int32), [])
        if rendered.plain and self._eos is not None and ids[-1:] != [self._eos]:
            ids = [*ids, self._eos]
        tokens, counted = np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.bool_)
        for start, end in rendered.turns:
            if end > start:
                counted[slice(*self._token_span(rendered, encoding, ids, start, end))] = True
        where = counted.nonzero()[0]
        # the first token of a sequence has no state that could predict it
        if len(where) == 0 or where[-1] == 0:
            raise BadRow("no trained token", "no token to train on; fill or remove the row")
        first, last = max(int(where[0]), 1), len(ids) if whole else int(where[-1]) + 1
        if rendered.everything:
            response = Response(tokens[first:], np.ones(len(ids) - first, np.bool_))
            return Tree(tokens[:first], [response], np.ones(first, np.bool_))
        return Tree(tokens[:first], [Response(tokens[first:last], counted[first:last])])

    def _token_span(self, rendered: Rendered, encoding: Any, ids: list[int], begin: int, until: int) -> tuple[int, int]:
        """First and past-the-last trained token of the turn in characters `begin` to `until`."""
        if rendered.everything:
            start = _token_at(encoding, begin, len(rendered.text), len(ids))
        else:
            start = self._boundary(rendered, encoding, ids, begin)
        if rendered.plain:
            return start, len(ids)
        end = _token_at(encoding, until, len(rendered.text), len(ids))
        close = self._closing(rendered.text, encoding, ids, start, end)
        self.ends["" if close is None else self._special[ids[close]]] += 1
        return start, end if close is None or rendered.exact or rendered.everything else close + 1

    def _boundary(self, rendered: Rendered, encoding: Any, ids: list[int], at: int) -> int:
        """The token at which character `at` starts, proven: the text before it has exactly the tokens before it.

        Added tokens split a text before anything else does, so it is enough to tokenise from the last one on, which
        is nearly always the same few characters.
        """
        text = rendered.text
        index = _token_at(encoding, at, len(text), len(ids))
        if at == 0:
            return index
        recent = range(index - 1, max(index - _LOOK_BACK, -1), -1)
        known = next((i for i in recent if ids[i] in self._added), None)
        if known is not None and not rendered.plain:
            tail = text[encoding.token_to_chars(known)[0] : at]
            if self._tokens(tail) == ids[known:index]:
                return index
        prefix = self.backend.encode(text[:at], add_special_tokens=rendered.plain).ids
        while rendered.plain and prefix and prefix[-1] == self._eos:
            prefix.pop()
        if prefix == ids[: len(prefix)]:
            return len(prefix)
        raise self._mismatch(prefix, ids)

    def _tokens(self, text: str) -> list[int]:
        if len(text) > _MEMO_CHARACTERS:
            return list(self.backend.encode(text, add_special_tokens=False).ids)
        if text not in self._memo:
            self._memo[text] = self.backend.encode(text, add_special_tokens=False).ids
        return self._memo[text]

    def _mismatch(self, prefix: Sequence[int], ids: Sequence[int]) -> BadRow:
        differs = next((i for i, (a, b) in enumerate(zip(prefix, ids, strict=False)) if a != b), len(ids))
        here = slice(max(differs - 2, 0), differs + 2)
        alone, within = (
            [self.backend.decode([i], skip_special_tokens=False) for i in side[here]] for side in (prefix, ids)
        )
        return BadRow(
            "token boundary",
            f"the prompt alone ends in the tokens {alone} and the conversation has {within} there: training would show "
            "the model another prompt than use does; remove the white space between prompt and answer, or "
            + NAME_A_TEMPLATE,
        )

    def _closing(self, text: str, encoding: Any, ids: list[int], start: int, end: int) -> int | None:
        """The end token that closes a turn, if only white space follows it: the end-of-sequence token in a run of
        special tokens, else the last of them. A run such as END_RESPONSE END_OF_TURN must not end at its first token:
        the model would never learn the one that stops it."""
        last = end - 1
        while last >= start and ids[last] not in self._special and _is_space(text, encoding.token_to_chars(last)):
            last -= 1
        if last < start or ids[last] not in self._special:
            return None
        run = last
        while run > start and ids[run - 1] in self._special:
            run -= 1
        return next((i for i in range(run, last) if ids[i] == self._eos), last)


def plain_backend(tokenizer: Any) -> Any:
    """A copy of the tokenizer's Rust half without truncation and padding, whatever it was last called with."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _token_at(encoding: Any, at: int, characters: int, tokens: int) -> int:
    """Index of the first token that reaches beyond character `at`; some characters (stripped ones) have no token."""
    while at < characters:
        index = encoding.char_to_token(at)
        if index is not None:
            return int(index)
        at += 1
    return tokens


def _is_space(text: str, span: tuple[int, int] | None) -> bool:
    return span is None or not text[slice(*span)].strip()
