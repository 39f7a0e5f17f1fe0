"""From messages to the token ids that engines speak; the way back is said.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_posttrain.data.audit.file_audit import FileAudit, Tally
from lit_posttrain.data.audit.warnings import changed_by_template
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.modules.asked import Asked
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
        self._mask = TokenMask(tokenizer)
        self._keys = UsedKeys(tokenizer, "nothing")

    def ids(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt; plain text where the model has no chat template.

        Raises:
            PostTrainError: for messages that are no conversation, one that the chat template refuses, and anything but
                a user's message where there is no chat template.
        """
        try:
            (rendered,) = self._template.render(_example(prompt))
            (encoding,) = self._mask.encode([rendered.text], rendered.plain)
            return [int(token) for token in self._mask.tree(rendered, encoding).prompt]
        except BadRow as problem:
            where = getattr(prompt, "source", "")
            raise PostTrainError(f"{where and where + ': '}{problem}") from problem

    def check(self, prompts: Sequence[Asked], limit: int | None) -> None:
        """Look, before the work, whether all of some prompts can be answered. limit: the most tokens a model takes.

        Raises:
            PostTrainError: as `ids`, and for a prompt that leaves no room for an answer.
        """
        for prompt in prompts:
            size = len(self.ids(prompt))
            if limit is not None and size >= limit:
                where = f"{prompt.source}: " if prompt.source else ""
                raise PostTrainError(f"{where}a prompt of {size} tokens, and the model takes {limit}: shorten it")

    def changed(self, prompts: Sequence[Asked]) -> list[str]:
        """What of prompts the chat template leaves out or changes, a line each, as the audit says it.

        Raises:
            PostTrainError: as `ids`.
        """
        audits: dict[str, FileAudit] = {}
        for number, prompt in enumerate(prompts, 1):
            name, _, line = prompt.source.rpartition(":")
            if not line.isdecimal():  # a prompt of no file
                name, line = prompt.source or "prompts", str(number)
            audit, altered = audits.setdefault(name, FileAudit(name)), self._template.altered
            self.ids(prompt)
            if self._template.altered > altered:
                audit.altered.add(int(line))
            for what in self._template.missed:
                audit.lost.setdefault(what, Tally()).add(int(line))
            example = _example(prompt)
            if self._template.holds_control_tokens(example):
                audit.control.add(int(line))
            self._keys.look([example], int(line), audit)
        return [line for audit in audits.values() for line in changed_by_template(audit)]


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The token ids of a single prompt; for many use one `PromptEncoder`."""
    return PromptEncoder(tokenizer).ids(prompt)


def _example(prompt: Prompt) -> Example:
    if isinstance(prompt, PromptRecord):
        messages, around = prompt.messages, {"tools": prompt.tools, "variables": prompt.variables}
    else:
        given = prompt if isinstance(prompt, str) else [dict(m) if isinstance(m, Mapping) else m for m in prompt]
        messages, around = as_messages(given, "messages"), {}
    bare = len(messages) == 1 and messages[0]["role"] == "user" and not around.get("tools")
    text = (str(messages[0]["content"]), "") if bare else None
    example = Example.of(messages, [], Row({}), text=text, **around)
    check_order(example.messages, answered=False)
    return example
