"""From messages to the token ids that engines speak; the way back is said.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lit_posttrain.data.audit.file_audit import FileAudit
from lit_posttrain.data.audit.warnings import changed_by_template
from lit_posttrain.data.formats.example import Example, bare_text
from lit_posttrain.data.modules.prompt_files import SourcedPrompt
from lit_posttrain.data.render.counted import CountedTemplate
from lit_posttrain.data.render.masks import TokenMask
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.render.used_keys import UsedKeys
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.message_checks import check_order
from lit_posttrain.data.rows.messages import as_messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer
from lit_posttrain.types import PromptRecord

Prompt = PromptRecord | Sequence[Mapping[str, Any]]


class PromptEncoder:
    """Prompts as the token ids that ask for an answer, for one tokenizer: the same ones that `PromptData` makes of a
    file's rows. A prompt that ends with words of the assistant is continued.

    Raises:
        PostTrainError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._template = ConversationTemplate(tokenizer, "nothing")
        self._counted = CountedTemplate(self._template)
        self._mask = TokenMask(tokenizer)
        self._keys = UsedKeys(tokenizer, "nothing")

    def ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt; plain text where the model has no chat template.

        Raises:
            PostTrainError: for messages that are no conversation, one that the chat template refuses, and anything but
                a user's message where there is no chat template.
        """
        with _named(prompt):
            (rendered,) = self._template.render(_example(prompt))
            (encoding,) = self._mask.encode([rendered.text], rendered.plain)
            return [int(token) for token in self._mask.tree(rendered, encoding).prompt]

    def check(self, prompts: Sequence[SourcedPrompt], limit: int | None) -> None:
        """Check that all prompts can be answered. limit: the most tokens a model takes.

        Raises:
            PostTrainError: as `ids`, and for a prompt that leaves no room for an answer.
        """
        for prompt in prompts:
            size = len(self.ids(prompt))
            if limit is not None and size >= limit:
                where = f"{prompt.source}: " if prompt.source else ""
                raise PostTrainError(f"{where}a prompt of {size} tokens, and the model takes {limit}: shorten it")

    def changed(self, prompts: Sequence[SourcedPrompt]) -> list[str]:
        """Parts of prompts that the chat template leaves out or changes, one line each, as the audit words it.

        Raises:
            PostTrainError: as `ids`.
        """
        audits: dict[str, FileAudit] = {}
        for number, prompt in enumerate(prompts, 1):
            name, _, line = prompt.source.rpartition(":")
            if not line.isdecimal():  # a prompt of no file
                name, line = prompt.source or "prompts", str(number)
            audit = audits.setdefault(name, FileAudit(name))
            self._counted.next_row()
            with _named(prompt):
                example = _example(prompt)
                self._counted.render(example, int(line), audit)
            self._keys.look([example], int(line), audit)
        return [line for audit in audits.values() for line in changed_by_template(audit)]


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The token ids of a single prompt; for many use one `PromptEncoder`."""
    return PromptEncoder(tokenizer).ids(prompt)


@contextmanager
def _named(prompt: Prompt) -> Iterator[None]:
    """Say of a prompt that cannot be asked where it stands."""
    try:
        yield
    except BadRow as problem:
        where = getattr(prompt, "source", "")
        raise PostTrainError(f"{where and where + ': '}{problem}") from problem


def _example(prompt: Prompt) -> Example:
    if not isinstance(prompt, PromptRecord):
        given = prompt if isinstance(prompt, str) else [dict(m) if isinstance(m, Mapping) else m for m in prompt]
        prompt = PromptRecord(as_messages(given, "messages"), {})
    text, around = bare_text(prompt.messages, [], prompt.tools), {"tools": prompt.tools, "variables": prompt.variables}
    example = Example.of(prompt.messages, [], Row({}), text=text, **around)
    check_order(example.messages, answered=False)
    return example
