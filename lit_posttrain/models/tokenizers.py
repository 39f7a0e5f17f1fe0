"""Tokenizers: where they come from, the chat template, added tokens."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.builtin_templates import END_OF_TURN, TEMPLATE_TOKENS, TEMPLATES
from lit_posttrain.models.gguf_file import INSTEAD, read_header
from lit_posttrain.models.paths import made_once, not_found, resolve
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.template_variables import parsed, with_variables
from lit_posttrain.tokenizer import Tokenizer

_ANSWER = "Because7of4that"  # no template writes it by itself
_TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": _ANSWER}]
_WORD = re.compile(r"\w+")
# by tokenizer.ggml.pre: the byte-pair vocabularies to which llama.cpp adds a BOS where a GGUF file does not say
_OPENED = (
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
    "chameleon",
)


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """The tokenizer of a model, with the spec's chat template and added tokens.

    Raises:
        PostTrainError: if there is no tokenizer, the template file does not exist, or the template does not use a
            variable that is given a value.
    """
    place, trusted = spec.tokenizer, spec.trust_remote_code
    where, gguf = resolve(place, "tokenizer") if place else resolve(spec.path, trust_remote_code=trusted)
    revision = None if spec.tokenizer else spec.revision  # it names a state of the model's repository
    tokenizer = _gguf_tokenizer(where, gguf) if gguf else _pretrained_tokenizer(where, revision, trusted)
    if spec.chat_template is not None:
        tokenizer.chat_template = _template(spec.chat_template)
        end = END_OF_TURN.get(spec.chat_template)
        missing = [t for t in TEMPLATE_TOKENS.get(spec.chat_template, []) if t not in tokenizer.get_vocab()]
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
        if end is not None:
            tokenizer.eos_token = end
        _check(tokenizer.chat_template, spec.chat_template)
    tokenizer.chat_template = with_variables(_without_mark(tokenizer.chat_template), spec.template_variables)
    if spec.special_tokens:
        tokenizer.add_tokens(spec.special_tokens, special_tokens=True)
    if spec.ends:
        _set_ends(tokenizer, spec.ends)
    return tokenizer


def _set_ends(tokenizer: Tokenizer, ends: list[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    for token in ends:
        if token not in vocabulary:
            special = ", ".join(tokenizer.all_special_tokens)
            raise PostTrainError(
                f"--model.policy.eos {token!r}: not a token of the vocabulary, whose special tokens are {special}; "
                "choose one of it, or add yours with --model.policy.special_tokens"
            )
    tokenizer.eos_token = ends[0]


def added_tokens(spec: ModelSpec) -> list[str]:
    """What the spec adds to the vocabulary of the model's own tokenizer: by special_tokens, a template, or a tokenizer
    from elsewhere."""
    if not (spec.special_tokens or spec.chat_template or spec.tokenizer):
        return []
    own = replace(spec, special_tokens=[], chat_template=None, template_variables={}, tokenizer=None)
    return sorted(set(load_tokenizer(spec).get_vocab()) - set(load_tokenizer(own).get_vocab()))


def _without_mark(template: Any) -> Any:
    """A template, or a dict of them, without the byte order mark that some editors write before a file's text, which
    would be a token before every conversation."""
    if isinstance(template, dict):
        return {name: text.removeprefix("\ufeff") for name, text in template.items()}
    return template.removeprefix("\ufeff") if template else template


def _template(name: str) -> str:
    if name in TEMPLATES:
        return TEMPLATES[name]
    file = Path(name).expanduser()
    if not os.path.isfile(file):  # of a template in the place of a name too, which is longer than names can be
        known = ", ".join(TEMPLATES)
        said = name if len(name) < 200 else f"{name[:60]}..."
        raise PostTrainError(
            f"--model.policy.chat_template {said}: no such file, and not one of the built-in: {known}; the text of a "
            "template goes into a file"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise PostTrainError(
            f"--model.policy.chat_template {name}: not UTF-8 (byte {problem.start}); save it as UTF-8 text"
        ) from problem
    return _within_json(text, name)


def _check(template: str, name: str) -> None:
    from jinja2 import TemplateSyntaxError

    try:
        parsed(template)
    except TemplateSyntaxError as error:
        raise PostTrainError(
            f"--model.policy.chat_template {name}: not valid Jinja (line {error.lineno}: {error.message}); mend the "
            "file"
        ) from error


def _within_json(text: str, name: str) -> str:
    """The template in the text of a chat_template.json or a tokenizer_config.json; any other text as it is."""
    try:
        found = json.loads(text.removeprefix("\ufeff"))
    except ValueError:
        return text
    template = found.get("chat_template") if isinstance(found, dict) else None
    if not isinstance(template, str):
        raise PostTrainError(
            f"--model.policy.chat_template {name}: JSON without a text under `chat_template`; name a file of Jinja"
        )
    return template


def _pretrained_tokenizer(where: str, revision: str | None, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code, use_fast=True
        )
        return tokenizer
    except Exception as problem:  # files that are damaged break a library anywhere
        if not Path(where).exists():
            raise not_found(where, first_line(problem)) from problem
        if not any(file.name.startswith(("tokenizer.", "vocab", "spiece", "tekken")) for file in Path(where).iterdir()):
            raise PostTrainError(f"no tokenizer in {where}; name one with --model.policy.tokenizer") from problem
        raise PostTrainError(f"the tokenizer at {where} cannot be read: {first_line(problem)}") from problem


def _gguf_tokenizer(where: str, gguf: str) -> Tokenizer:
    """Converting a GGUF vocabulary takes seconds, so the result is kept in the cache."""
    from transformers import AutoTokenizer

    def convert(folder: Path) -> None:
        AutoTokenizer.from_pretrained(where, gguf_file=gguf).save_pretrained(folder)

    file = Path(where) / gguf
    header = read_header(file)
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(made_once(file, "tokenizer", convert))
    except Exception as problem:  # as above
        raise PostTrainError(
            f"the tokenizer in {file}: {first_line(problem).removesuffix('.')}; {INSTEAD}"
        ) from problem
    kind, splitter = (header.values.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    usual = kind == "llama" or (kind == "gpt2" and splitter in _OPENED)
    if header.values.get("tokenizer.ggml.add_bos_token", usual):
        _open_texts(tokenizer)
    return tokenizer


def _open_texts(tokenizer: Tokenizer) -> None:
    """Let the tokenizer write its BOS before plain texts, as the file asks, if transformers did not see to it."""
    from tokenizers.processors import Sequence, TemplateProcessing

    bos, number = tokenizer.bos_token, tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] == [number]:
        return
    opened = TemplateProcessing(single=f"{bos}:0 $A:0", special_tokens=[(bos, number)])
    core = tokenizer.backend_tokenizer
    core.post_processor = Sequence([core.post_processor, opened]) if core.post_processor else opened


def eos_ids(
    tokenizer: Tokenizer, *configs: Any, spec: ModelSpec | None = None, learnt: Iterable[str] = ()
) -> list[int]:
    """Every id that ends a response: those of `spec.eos`, where it names any; else those of the tokenizer, the model's
    config and the generation config, of what closes the assistant's turns in the chat template, and of tokens that are
    known to close trained turns (learnt)."""
    if spec is not None and spec.eos:
        return sorted(map(tokenizer.convert_tokens_to_ids, spec.ends))
    found: set[int] = set(template_ends(tokenizer))
    for value in (tokenizer.eos_token_id, *(getattr(c, "eos_token_id", None) for c in configs)):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    vocabulary = tokenizer.get_vocab()
    return sorted(found | {vocabulary[token] for token in learnt if token in vocabulary})


def template_ends(tokenizer: Tokenizer) -> list[int]:
    """The id of the special token that closes the assistant's turns in a chat template, or, where none does, of the one
    that opens the next turn behind it; nothing for a template without either."""
    asked, answered = _TALK
    return closing_token(tokenizer) or _stop(
        tokenizer, _special(tokenizer, _behind_answer(tokenizer, [asked, answered, asked]))
    )


def closing_token(tokenizer: Tokenizer) -> list[int]:
    """The id of the special token that closes the assistant's turns in a chat template, if there is one."""
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
    """True if what stands behind the last answer alone (rest, behind what stands behind every answer: shared) asks for
    another answer, and closes nothing: a template may write its generation prompt always."""
    if not rest or tokenizer.eos_token_id in _ids(tokenizer, rest):
        return False
    asking, answered = (_rendered(tokenizer, talk, False) for talk in (_TALK[:1], _TALK))
    # where nothing closes the other answers, rest may be what closes the user's turns: does it open the answers?
    opened = set(_WORD.findall(answered.rpartition(_ANSWER)[0])) <= set(_WORD.findall(asking))
    return asking.rstrip().endswith(rest) and (opened or bool(_special(tokenizer, shared)))


def _stop(tokenizer: Tokenizer, run: list[int]) -> list[int]:
    """Of several special tokens in a row, such as END_RESPONSE END_OF_TURN, the one that stops a model."""
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id in run else run[-1:]


def _special(tokenizer: Tokenizer, text: str) -> list[int]:
    """The special tokens that a text begins with, behind white space."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    spoken = dropwhile(lambda i: not tokenizer.decode([i]).strip(), _ids(tokenizer, text))
    return list(takewhile(special.__contains__, spoken))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _behind_answer(tokenizer: Tokenizer, talk: list[dict[str, str]]) -> str:
    """What a chat template writes behind the answer; "" where it does not write the answer as it is."""
    return _rendered(tokenizer, talk, False, _ANSWER).rpartition(_ANSWER)[2]


def _rendered(tokenizer: Tokenizer, talk: list[dict[str, str]], prompt: bool, words: str = "") -> str:
    """What a chat template makes of a conversation; "" where it does not write these words of it."""
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
