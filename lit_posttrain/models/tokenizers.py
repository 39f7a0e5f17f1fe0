"""The tokenizer of a ModelSpec, and the tokens that end a response."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import dropwhile, takewhile
from typing import Any

from lit_posttrain.models.adapter_folders import resolve
from lit_posttrain.models.paths import located
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizer_files import read_tokenizer
from lit_posttrain.tokenizer import Tokenizer

_ANSWER = "Because7of4that"  # which no template contains
_TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": _ANSWER}]
_WORD = re.compile(r"\w+")


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """The tokenizer of a model, with the spec's chat template and added tokens.

    Raises:
        PostTrainError: as `read_tokenizer`; for a tokenizer or a model that does not exist.
    """
    own = spec.tokenizer
    return read_tokenizer(spec, located(own, "tokenizer") if own else resolve(spec.path, spec.trust_remote_code))


def added_tokens(spec: ModelSpec) -> list[str]:
    """The tokens that the spec adds to the vocabulary of the model's own tokenizer: by special_tokens, a chat template
    or another tokenizer."""
    if not (spec.special_tokens or spec.chat_template or spec.tokenizer):
        return []
    own = replace(spec, special_tokens=[], chat_template=None, template_variables={}, tokenizer=None)
    return sorted(set(load_tokenizer(spec).get_vocab()) - set(load_tokenizer(own).get_vocab()))


def eos_ids(
    tokenizer: Tokenizer, *configs: Any, spec: ModelSpec | None = None, learnt: Iterable[str] = ()
) -> list[int]:
    """All ids that end a response: those of `spec.eos` if it has any; else the eos ids of the tokenizer, of the model's
    config and of the generation config, the token that closes the assistant's turns in the chat template, and the
    tokens that closed turns in training (learnt)."""
    if spec is not None and spec.eos:
        return sorted(map(tokenizer.convert_tokens_to_ids, spec.ends))
    found: set[int] = set(template_ends(tokenizer))
    for value in (tokenizer.eos_token_id, *(getattr(c, "eos_token_id", None) for c in configs)):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    vocabulary = tokenizer.get_vocab()
    return sorted(found | {vocabulary[token] for token in learnt if token in vocabulary})


def template_ends(tokenizer: Tokenizer) -> list[int]:
    """The id of the special token that closes the assistant's turns in the chat template, or, if there is none, of the
    one that opens the next turn; empty for a template without either."""
    asked, answered = _TALK
    return closing_token(tokenizer) or _stop(
        tokenizer, _special(tokenizer, _behind_answer(tokenizer, [asked, answered, asked]))
    )


def closing_token(tokenizer: Tokenizer) -> list[int]:
    """The id of the special token that closes the assistant's turns in the chat template, if there is one."""
    asked = _TALK[0]
    behind, followed = (_behind_answer(tokenizer, talk) for talk in (_TALK, [*_TALK, asked]))
    shared = behind[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(behind, followed, strict=False)))]
    if not _asks_by_itself(tokenizer, behind[len(shared) :].strip(), shared):
        return _stop(tokenizer, _special(tokenizer, behind))
    run = _special(tokenizer, shared)
    if tokenizer.eos_token_id not in run and len(run) > 1 and len(run) == len(_ids(tokenizer, shared.strip())):
        run.pop()  # every turn begins with it, whoever speaks
    return _stop(tokenizer, run)


def _asks_by_itself(tokenizer: Tokenizer, rest: str, shared: str) -> bool:
    """True if the text after the last answer asks for another answer instead of closing a turn: some templates always
    write their generation prompt. shared: the text after every answer. rest: what follows it after the last one."""
    if not rest or tokenizer.eos_token_id in _ids(tokenizer, rest):
        return False
    asking, answered = (_rendered(tokenizer, talk, False) for talk in (_TALK[:1], _TALK))
    # where nothing closes the other answers, rest may be what closes the user's turns: does it open the answers?
    opened = set(_WORD.findall(answered.rpartition(_ANSWER)[0])) <= set(_WORD.findall(asking))
    return asking.rstrip().endswith(rest) and (opened or bool(_special(tokenizer, shared)))


def _stop(tokenizer: Tokenizer, run: list[int]) -> list[int]:
    """The token that stops a model, of several special tokens in a row such as END_RESPONSE END_OF_TURN."""
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id in run else run[-1:]


def _special(tokenizer: Tokenizer, text: str) -> list[int]:
    """The special tokens at the beginning of a text, after white space."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    spoken = dropwhile(lambda i: not tokenizer.decode([i]).strip(), _ids(tokenizer, text))
    return list(takewhile(special.__contains__, spoken))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _behind_answer(tokenizer: Tokenizer, talk: list[dict[str, str]]) -> str:
    """The text after the answer in a rendered conversation; "" if the template changes the answer."""
    return _rendered(tokenizer, talk, False, _ANSWER).rpartition(_ANSWER)[2]


def _rendered(tokenizer: Tokenizer, talk: list[dict[str, str]], prompt: bool, words: str = "") -> str:
    """A conversation as the chat template renders it; "" if the result lacks `words`."""
    if tokenizer.chat_template is None:
        return ""
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in talk]
    for messages in (talk, parts):
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
        except Exception:  # a template can raise anything
            continue
        if words in text:
            return text
    return ""
