"""Tokenizers: where they come from, the chat template, added tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_posttrain.errors import PostTrainError, first_line
from lit_posttrain.models.gguf_file import INSTEAD, read_header
from lit_posttrain.models.paths import made_once, not_found, resolve
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.template_variables import with_variables

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
_TEMPLATE_TOKENS = {"chatml": ["<|im_start|>", "<|im_end|>"]}
_END_OF_TURN = {"chatml": "<|im_end|>"}


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer of a model, with the spec's chat template and added tokens.

    Raises:
        PostTrainError: if there is no tokenizer, the template file does not exist, or the template does not use a
            variable that is given a value.
    """
    where, gguf = resolve(spec.tokenizer, "tokenizer") if spec.tokenizer else resolve(spec.path)
    revision = None if spec.tokenizer else spec.revision  # it names a state of the model's repository
    trusted = spec.trust_remote_code
    tokenizer = _gguf_tokenizer(where, gguf) if gguf else _pretrained_tokenizer(where, revision, trusted)
    if spec.chat_template is not None:
        tokenizer.chat_template = _template(spec.chat_template)
        end = _END_OF_TURN.get(spec.chat_template)
        missing = [t for t in _TEMPLATE_TOKENS.get(spec.chat_template, []) if t not in tokenizer.get_vocab()]
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
        if end is not None:
            tokenizer.eos_token = end
    tokenizer.chat_template = with_variables(_without_mark(tokenizer.chat_template), spec.template_variables)
    if spec.special_tokens:
        tokenizer.add_tokens(spec.special_tokens, special_tokens=True)
    return tokenizer


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
    if not file.is_file():
        known = ", ".join(TEMPLATES)
        raise PostTrainError(f"--model.policy.chat_template {name}: no such file, and not one of the built-in: {known}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise PostTrainError(
            f"--model.policy.chat_template {name}: not UTF-8 (byte {problem.start}); save it as UTF-8 text"
        ) from problem


def _pretrained_tokenizer(where: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            where, revision=revision, trust_remote_code=trust_remote_code, use_fast=True
        )
    except Exception as problem:  # files that are damaged break a library anywhere
        if not Path(where).exists():
            raise not_found(where, first_line(problem)) from problem
        if not any(file.name.startswith(("tokenizer.", "vocab", "spiece", "tekken")) for file in Path(where).iterdir()):
            raise PostTrainError(f"no tokenizer in {where}; name one with --model.policy.tokenizer") from problem
        raise PostTrainError(f"the tokenizer at {where} cannot be read: {first_line(problem)}") from problem


def _gguf_tokenizer(where: str, gguf: str) -> Any:
    """Converting a GGUF vocabulary takes seconds, so the result is kept in the cache."""
    from transformers import AutoTokenizer

    def convert(folder: Path) -> None:
        AutoTokenizer.from_pretrained(where, gguf_file=gguf).save_pretrained(folder)

    file = Path(where) / gguf
    read_header(file)
    try:
        return AutoTokenizer.from_pretrained(made_once(file, "tokenizer", convert))
    except Exception as problem:  # as above
        raise PostTrainError(
            f"the tokenizer in {file}: {first_line(problem).removesuffix('.')}; {INSTEAD}"
        ) from problem


def eos_ids(tokenizer: Any, *configs: Any) -> list[int]:
    """Every id that ends a generation: the tokenizer's, and those of the model's and the generation config."""
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, *(getattr(c, "eos_token_id", None) for c in configs)):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return sorted(found)
