"""Tokenizers from files: of a folder, the hub or a GGUF file; chat templates from files; added tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.builtin_templates import END_OF_TURN, TEMPLATE_TOKENS, TEMPLATES
from lit_posttrain.models.gguf_file import INSTEAD, read_header
from lit_posttrain.models.paths import Place, made_once, not_found
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.template_variables import parsed, with_variables
from lit_posttrain.tokenizer import Tokenizer

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


def read_tokenizer(spec: ModelSpec, place: Place) -> Tokenizer:
    """The tokenizer at `place`, with the spec's chat template and added tokens.

    Raises:
        PostTrainError: if there is no tokenizer, the template file does not exist, or the template does not use a
            variable that is given a value.
    """
    if place.gguf:
        tokenizer = _gguf_tokenizer(place.where, place.gguf)
    else:
        revision = None if spec.tokenizer else spec.revision  # it names a state of the model's repository
        tokenizer = _pretrained_tokenizer(place.where, revision, spec.trust_remote_code)
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


def _without_mark(template: Any) -> Any:
    """A template, or a dict of them, without the byte order mark that some editors write at the beginning of a file: it
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
    """The chat template in the text of a chat_template.json or tokenizer_config.json; any other text is returned."""
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
    """The tokenizer of a GGUF file. It is kept in the cache, since converting the vocabulary takes seconds."""
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
    """Let the tokenizer put its BOS before plain texts, as the file says, unless transformers has done so."""
    from tokenizers.processors import Sequence, TemplateProcessing

    bos, number = tokenizer.bos_token, tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] == [number]:
        return
    opened = TemplateProcessing(single=f"{bos}:0 $A:0", special_tokens=[(bos, number)])
    core = tokenizer.backend_tokenizer
    core.post_processor = Sequence([core.post_processor, opened]) if core.post_processor else opened
