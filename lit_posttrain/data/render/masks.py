"""From the tokens of a rendered text to a tree: where the prompt ends, and which tokens are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lit_posttrain.data.render.rendered import Rendered, special_tokens
from lit_posttrain.data.render.rendering import NAME_A_TEMPLATE
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import Response, Tree

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

_MEMO_CHARACTERS = 64
_LOOK_BACK = 16


class Encoded(Protocol):
    """The part of tokenizers' `Encoding` that is used here."""

    @property
    def ids(self) -> list[int]: ...
    def char_to_token(self, char_pos: int, /) -> int | None: ...
    def token_to_chars(self, token_index: int, /) -> tuple[int, int] | None: ...


class TokenMask:
    """Makes trees from the encodings of one tokenizer.

    ends: how many trained turns close with each end token; "" for none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.backend = plain_backend(tokenizer)
        self.ends: Counter[str] = Counter()
        self._eos: int | None = tokenizer.eos_token_id
        self._added = set(self.backend.get_added_tokens_decoder())
        self._special = special_tokens(tokenizer)
        self._memo: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str], plain: bool) -> list[Encoding]:
        """Encodings of texts. `plain`: the tokenizer adds its special tokens, which a chat template writes itself."""
        return list(self.backend.encode_batch(texts, add_special_tokens=plain))

    def trees(self, rendered: Rendered, encoding: Encoded, whole: bool = False) -> list[Tree]:
        """The trees of a text: one, or one per turn if a token spans the end of a turn's prompt and the beginning of
        its answer. In generation the prompt ends there, and the model continues with a new token.

        whole: as in `tree`.

        Raises:
            BadRow: as `tree`.
        """
        try:
            return [self.tree(rendered, encoding, whole)]
        except _Seam:
            return [self._apart(rendered, start, end) for start, end in rendered.turns if end > start]

    def _apart(self, rendered: Rendered, start: int, end: int) -> Tree:
        """The tree of one turn whose prompt and answer are tokenised separately."""
        text = rendered.text[:end]
        marks = rendered.marks and [(max(a, start), min(b, end)) for a, b in rendered.marks if b > start and a < end]
        alone = Rendered(text, [(start, end)], marks, apart=True)
        return self.tree(alone, Joined(self.backend, text, start))

    def tree(self, rendered: Rendered, encoding: Encoded, whole: bool = False) -> Tree:
        """A prompt and one response. The prompt ends before the first trained token, the response with the last trained
        one: what follows cannot change a likelihood. whole: keep it too, since a score is read at the text's last
        token. An unanswered prompt has no response.

        Raises:
            BadRow: nothing to train on, or a prompt whose tokens are not the first tokens of the conversation.
        """
        if rendered.apart and not isinstance(encoding, Joined):
            encoding = Joined(self.backend, rendered.text, rendered.turns[0][0])
        ids: list[int] = encoding.ids
        if rendered.unanswered:
            end = len(ids) - (rendered.plain and ids[-1:] == [self._eos])  # some tokenizers write one behind any text
            if end == 0:
                raise BadRow("empty prompt", "no token to continue from; fill or remove the row")
            return Tree(np.array(ids[:end], dtype=np.int32), [])
        if rendered.plain and self._eos is not None and ids[-1:] != [self._eos]:
            ids = [*ids, self._eos]
        tokens, loss_mask = np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.bool_)
        for start, end in rendered.turns:
            if end > start:
                for first, past in self._token_spans(rendered, encoding, ids, start, end):
                    loss_mask[first:past] = True
        where = loss_mask.nonzero()[0]
        # the first token of a sequence has no state that could predict it
        if len(where) == 0 or where[-1] == 0:
            raise BadRow("no trained token", "no token to train on; fill or remove the row")
        first, last = max(int(where[0]), 1), len(ids) if whole else int(where[-1]) + 1
        if rendered.everything:
            response = Response(tokens[first:], np.ones(len(ids) - first, np.bool_))
            return Tree(tokens[:first], [response], np.ones(first, np.bool_))
        return Tree(tokens[:first], [Response(tokens[first:last], loss_mask[first:last])])

    def _token_spans(
        self, rendered: Rendered, encoding: Encoded, ids: list[int], begin: int, until: int
    ) -> list[tuple[int, int]]:
        """(first, past-the-last) of the trained tokens of the turn in characters `begin` to `until`."""
        length = len(rendered.text)
        if rendered.everything:
            start = _token_at(encoding, begin, length, len(ids))
        else:
            start = self._boundary(rendered, encoding, ids, begin)
        if rendered.plain:
            return [(start, len(ids))]
        marks = [(max(a, begin), min(b, until)) for a, b in rendered.marks or () if b > begin and a < until]
        spans = [
            (
                start if a == begin else _token_at(encoding, a, length, len(ids)),
                _token_at(encoding, b, length, len(ids)),
            )
            for a, b in marks or [(begin, until)]
        ]
        last, end = spans[-1]
        close = self._closing(rendered.text, encoding, ids, last, end)
        self.ends["" if close is None else self._special[ids[close]]] += 1
        if close is not None and not marks and not rendered.everything:
            spans[-1] = last, close + 1
        return spans

    def _boundary(self, rendered: Rendered, encoding: Encoded, ids: list[int], at: int) -> int:
        """The token at which character `at` starts, proven: the text before it has exactly the tokens before it.

        Added tokens split a text before anything else does, so it is enough to tokenise from the last one on, which is
        nearly always the same few characters.
        """
        text = rendered.text
        index = _token_at(encoding, at, len(text), len(ids))
        if at == 0 or rendered.apart:
            return index
        recent = range(index - 1, max(index - _LOOK_BACK, -1), -1)
        known = next((i for i in recent if ids[i] in self._added), None)
        span = None if known is None else encoding.token_to_chars(known)
        if span is not None and not rendered.plain and self._tokens(text[span[0] : at]) == ids[known:index]:
            return index
        prefix = self.backend.encode(text[:at], add_special_tokens=rendered.plain).ids
        while rendered.plain and prefix and prefix[-1] == self._eos:
            prefix.pop()
        if prefix == ids[: len(prefix)]:
            return len(prefix)
        differs = next((i for i, (a, b) in enumerate(zip(prefix, ids, strict=False)) if a != b), len(ids))
        begins, ends = encoding.token_to_chars(differs) or (at, at) if differs < len(ids) else (at, at)
        if rendered.plain or (text[begins:at].strip() and text[at:ends].strip()):
            raise self._mismatch(prefix, ids, differs)
        if rendered.scored:
            return differs
        raise _Seam

    def _tokens(self, text: str) -> list[int]:
        if len(text) > _MEMO_CHARACTERS:
            return list(self.backend.encode(text, add_special_tokens=False).ids)
        if text not in self._memo:
            self._memo[text] = self.backend.encode(text, add_special_tokens=False).ids
        return self._memo[text]

    def _mismatch(self, prefix: Sequence[int], ids: Sequence[int], differs: int) -> BadRow:
        here = slice(max(differs - 2, 0), differs + 2)
        alone, within = (
            [self.backend.decode([i], skip_special_tokens=False) for i in side[here]] for side in (prefix, ids)
        )
        return BadRow(
            "token boundary",
            f"the prompt alone ends in the tokens {alone} and the conversation has {within} there: training would show "
            "the model another prompt than inference does; remove the white space between prompt and answer, or "
            + NAME_A_TEMPLATE,
        )

    def _closing(self, text: str, encoding: Encoded, ids: list[int], start: int, end: int) -> int | None:
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


class _Seam(BadRow):
    """White space at the end of a prompt forms one token with what follows it."""

    def __init__(self) -> None:
        super().__init__("token boundary", "white space is one token across the end of a prompt; train turn by turn")


class Joined:
    """The encodings of both parts of a text, one after the other, with the methods of an encoding that are used here.
    at: the character at which the second part begins."""

    def __init__(self, backend: Backend, text: str, at: int) -> None:
        prompt = backend.encode(text[:at], add_special_tokens=False)
        ids, spans = _tokens_behind(backend, text[at:])
        self.ids: list[int] = [*prompt.ids, *ids]
        self._spans: list[tuple[int, int]] = [*prompt.offsets, *((start + at, end + at) for start, end in spans)]
        self._first = len(prompt.ids), at

    def char_to_token(self, at: int) -> int | None:
        """The index of the token that character `at` belongs to."""
        first, seam = self._first
        where = range(first, len(self.ids)) if at >= seam else range(first)
        return next((i for i in where if self._spans[i][0] <= at < self._spans[i][1]), None)

    def token_to_chars(self, index: int) -> tuple[int, int]:
        """(first, past-the-last) character of a token."""
        return self._spans[index]


def _tokens_behind(backend: Backend, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens and spans of a text that follows another one. Some tokenizers write a space before the first word of any
    input: they get a line break before it, which is removed again."""
    if backend.encode("a", add_special_tokens=False).tokens[0].startswith("\u2581"):
        before = backend.encode("\n", add_special_tokens=False).ids
        longer = backend.encode("\n" + text, add_special_tokens=False)
        if longer.ids[: len(before)] == before:
            rest = slice(len(before), None)
            return longer.ids[rest], [(max(start - 1, 0), end - 1) for start, end in longer.offsets[rest]]
    encoding = backend.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def plain_backend(tokenizer: Tokenizer) -> Backend:
    """A copy of the tokenizer's Rust half without truncation and padding, whatever was set by its last call."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _token_at(encoding: Encoded, at: int, characters: int, tokens: int) -> int:
    """Index of the first token that reaches beyond character `at`; some characters (stripped ones) have no token."""
    while at < characters:
        index = encoding.char_to_token(at)
        if index is not None:
            return int(index)
        at += 1
    return tokens


def _is_space(text: str, span: tuple[int, int] | None) -> bool:
    return span is None or not text[slice(*span)].strip()
