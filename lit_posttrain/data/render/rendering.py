"""Conversations as text, by a tokenizer's chat template: the only way for training, rollouts and generation alike.

Templates expect the same conversation in different forms: content as a string or as a list of parts, arguments of tool
calls as objects or as JSON text, thoughts under one key or another. `Renderer.spelled` finds the form that a template
writes in full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from lit_posttrain.data.render.clock import at_one_moment
from lit_posttrain.data.render.written import absent
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.message_keys import REASONING, Messages
from lit_posttrain.errors import InvalidTemplate, PostTrainError
from lit_posttrain.template_variables import meant, mentioned
from lit_posttrain.tokenizer import Tokenizer

NAME_A_TEMPLATE = "name a corrected template with --model.policy.chat_template FILE"


@dataclass(frozen=True)
class Spelling:
    """parts: content is a list of parts. text_arguments: tool calls have JSON text as arguments. bare_calls: beside
    tool calls empty content is null."""

    parts: bool = False
    text_arguments: bool = False
    bare_calls: bool = False

    def of(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message in this spelling."""
        made = dict(message)
        if self.text_arguments and "tool_calls" in made:
            made["tool_calls"] = [_with_text_arguments(call) for call in made["tool_calls"]]
        if self.bare_calls and "tool_calls" in made and not made["content"]:
            made["content"] = None
        elif self.parts:
            made["content"] = [_Part(type="text", text=made["content"])]
        return made


class _Part(dict[str, str]):
    """A part of content. A template that writes it as Python prints it does not support parts, and is refused."""

    def __repr__(self) -> str:
        raise TypeError("it writes the parts of content as Python objects")


_KEPT = 16  # texts, of one row
_AS_IT_IS = Spelling()
_WITH_CALLS = (
    Spelling(text_arguments=True),
    Spelling(bare_calls=True),
    Spelling(text_arguments=True, bare_calls=True),
)
_PARTS = Spelling(parts=True)
_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which one?"},
    {"role": "assistant", "content": "The other one."},
]


@dataclass(frozen=True)
class Conversation:
    """The input of a template: messages with string content, tool schemas, and template variables. begun: words of the
    assistant at the end of the prompt, the beginning of message `begun_at`."""

    messages: Messages
    tools: list[dict[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    begun: str = ""
    begun_at: int = -1
    spelling: Spelling = _AS_IT_IS

    def first(self, count: int) -> Conversation:
        """The first `count` messages."""
        return self if count == len(self.messages) else replace(self, messages=self.messages[:count])

    def then(self, *messages: dict[str, Any]) -> Conversation:
        """With more messages at the end."""
        return replace(self, messages=[*self.messages, *messages])


class Renderer:
    """One tokenizer's chat template at one moment: a template that writes the date or the time writes the same one for
    the lifetime of the renderer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.now = datetime.now()
        self._tokenizer = tokenizer
        self._special = dict(tokenizer.special_tokens_map)
        self._templates: dict[bool, str] = {}
        self._strings: dict[bool, bool] = {}
        self._texts: dict[tuple[Any, ...], tuple[Conversation, str]] = {}

    def template(self, with_tools: bool) -> str:
        """The template's text; some tokenizers have another one for conversations with tools.

        Raises:
            PostTrainError: the tokenizer has several templates, and none for this case.
        """
        if with_tools not in self._templates:
            try:
                self._templates[with_tools] = self._tokenizer.get_chat_template(tools=[] if with_tools else None)
            except ValueError as error:  # transformers' way to say so
                names = ", ".join(sorted(self._tokenizer.chat_template or ()))
                raise PostTrainError(
                    f"the tokenizer has chat templates named {names}, and none named default; "
                    "name one with --model.policy.chat_template FILE"
                ) from error
        return self._templates[with_tools]

    def dated(self, with_tools: bool) -> bool:
        """True if the template writes the day's date or the time into what it renders."""
        return "strftime_now" in self.template(with_tools)

    def text(self, talk: Conversation, prompt: bool = False) -> str:
        """The rendered conversation. prompt: with the generation prompt at its end.

        Raises:
            BadRow: the template refuses the conversation.
            PostTrainError: the template is not valid Jinja.
        """
        # the messages themselves: conversations of one row are made again and again of the same ones
        key = prompt, talk.spelling, id(talk.tools), id(talk.variables), *map(id, talk.messages)
        if key not in self._texts:
            text = self._render(talk, add_generation_prompt=prompt)[0]
            if len(self._texts) >= _KEPT:
                del self._texts[next(iter(self._texts))]
            self._texts[key] = talk, text  # as long as it lives, nothing else has its ids
        return self._texts[key][1]

    def marked(self, talk: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The text with the spans, in characters, that a template with `{% generation %}` marks as the assistant's."""
        return self._render(talk, return_assistant_tokens_mask=True)

    def before(self, talk: Conversation, k: int) -> str:
        """What the model sees before it generates message k, or the rest of it.

        Raises:
            BadRow: as `text`.
        """
        if talk.begun and k == talk.begun_at:
            begun = {**talk.messages[k], "content": talk.begun}
            return self._render(talk.first(k).then(begun), continue_final_message=True)[0]
        return self.text(talk.first(k), prompt=True)

    def spelled(self, talk: Conversation, prompt: bool = False) -> Conversation:
        """The conversation in the form that the template supports: unchanged, unless the template refuses it, drops a
        message's words or a part of a call, and writes more of them in another form. A template that truncates words
        supports the form.

        Raises:
            BadRow: the template refuses all forms.
        """
        self._texts.clear()
        talk = replace(talk, messages=[self._with_thought(m, talk.tools) for m in talk.messages])
        calls = any("tool_calls" in m for m in talk.messages)
        # always in this order: no row may choose the spelling of another
        spellings = (_AS_IT_IS, *(_WITH_CALLS if calls else ()), _PARTS)
        best, fewest, refusals = None, -1, list[BadRow]()
        for spelling in spellings:
            made = replace(talk, spelling=spelling)
            try:
                self.text(made, prompt)
                missing = 0 if not calls and self._writes_text(talk.tools) else self._missing(made, prompt)
            except BadRow as error:
                refusals.append(error)
                continue
            if best is None or missing < fewest:
                best, fewest = made, missing
            if not missing:
                break
        if best is None:
            # what the template itself has to say, rather than what some spelling breaks in it
            raise next((error for error in refusals if _raised(error)), refusals[0])
        return best

    def _writes_text(self, tools: list[dict[str, Any]] | None) -> bool:
        """True if the template writes content that is a string, so that it need not be tried again for every row."""
        key = bool(tools)
        if key not in self._strings:
            self._strings[key] = False
            for messages in (_TALK, _TALK[1:]):  # some templates take no system prompt
                talk = Conversation(messages, tools)
                try:
                    self.text(talk)
                    self._strings[key] = not self._missing(talk, False)
                    break
                except BadRow:
                    continue
        return self._strings[key]

    def _missing(self, talk: Conversation, prompt: bool) -> int:
        """How many messages, and parts of calls, of a conversation the template leaves out."""
        places = [k for k, m in enumerate(talk.messages) if m["role"] != "tool"]
        lacks = absent(
            talk.messages, places, lambda messages: self.text(replace(talk, messages=messages), prompt), False
        )
        return sum(kind != "thought" for _, kind, _ in lacks)

    def _with_thought(self, message: dict[str, Any], tools: list[dict[str, Any]] | None) -> dict[str, Any]:
        """A message with its thought under the key that the template reads."""
        key = next((key for key in REASONING if isinstance(message.get(key), str)), None)
        names = mentioned(self.template(bool(tools)))
        read = next((name for name in REASONING if name in names), None)
        if key is None or read is None or key in names:
            return message
        return {**{name: value for name, value in message.items() if name != key}, read: message[key]}

    def _render(self, talk: Conversation, **how: Any) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.template(bool(talk.tools))
        try:
            texts, spans = render_jinja_template(
                [[talk.spelling.of(message) for message in talk.messages]],
                tools=talk.tools,
                chat_template=at_one_moment(template, self.now),
                **how,
                **{**self._special, **meant(template, talk.variables)},
            )
        except TemplateSyntaxError as error:
            raise InvalidTemplate(
                f"the chat template is not valid Jinja (line {error.lineno}: {error.message}); {NAME_A_TEMPLATE}"
            ) from error
        except Exception as error:  # a template can raise anything, such as RecursionError
            reason = " ".join(str(error).split())[:200]
            raise BadRow(
                "template refused",
                f"the chat template refuses the conversation ({reason}); mend the conversation, or {NAME_A_TEMPLATE}",
            ) from error
        return texts[0], spans[0] if spans else []


def _raised(error: BadRow) -> bool:
    """True if a template refuses a conversation in its own words, with `raise_exception`."""
    from jinja2 import TemplateError

    return type(error.__cause__) is TemplateError


def _with_text_arguments(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}
