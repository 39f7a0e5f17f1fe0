"""What a record holds, in one form for all readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from lit_posttrain.data.rows.message_keys import MARK, NOTES, UNUSED, Messages
from lit_posttrain.data.rows.row import Row
from lit_posttrain.types import Message


@dataclass(slots=True)
class Example:
    """The content of a record: a conversation, plain text, or both.

    messages: the conversation, roles normalised; empty for plain text.
    prompt_turns: how many leading messages are the prompt: the record's own prompt, or in a whole conversation the
        turns before the first assistant turn.
    tools: tool schemas for the chat template.
    text: (prompt, completion) as plain strings, for tokenizers without a chat template; ("", text) for plain text;
        None if only a chat template can render the conversation.
    variables: template variables of the record, such as {"enable_thinking": False}.
    untrained: indices of messages that the record marks as not to be trained on.
    continued: words of the assistant that belong to the prompt: `messages[prompt_turns]` begins with them, and only
        the rest is the response. A prompt alone that is to be continued ends with that message.
    """

    messages: Messages
    prompt_turns: int = 0
    tools: list[dict[str, Any]] | None = None
    text: tuple[str, str] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    untrained: frozenset[int] = frozenset()
    continued: str = ""

    @classmethod
    def of(cls, prompt: Messages, response: Messages, row: Row, **more: Any) -> Self:
        """A prompt and the messages after it. A prompt that ends with the assistant's words is continued by the
        response. Unused keys of the messages are added to the row's."""
        continued = ""
        last = prompt[-1] if prompt else {}
        if last.get("role") == "assistant" and "tool_calls" not in last:
            continued = last["content"]
            if response and response[0]["role"] == "assistant":
                words = continued + response[0]["content"]
                begun = {key: value for key, value in last.items() if key != MARK}
                response = [{**begun, **response[0], "content": words}, *response[1:]]
                prompt = prompt[:-1]
            elif not response:
                prompt, response = prompt[:-1], [last]
            else:
                continued = ""
        messages = [*prompt, *response]
        row.unused += [key for m in messages for key in m.get(UNUSED, ())]
        row.notes += [note for m in messages for note in m.get(NOTES, ())]
        untrained = frozenset(i for i, m in enumerate(messages) if m.get(MARK) is False)
        bare = [{key: value for key, value in m.items() if key not in (MARK, UNUSED, NOTES)} for m in messages]
        return cls(bare, len(prompt), untrained=untrained, continued=continued, **more)


def bare_text(
    prompt: Sequence[Message], response: Sequence[Message], tools: Sequence[Any] | None
) -> tuple[str, str] | None:
    """`Example.text` of a single question with at most one answer, which a tokenizer without a chat template can
    render; None for anything else."""
    if len(prompt) != 1 or prompt[0]["role"] != "user" or len(response) > 1 or tools:
        return None
    return str(prompt[0]["content"]), str(response[0]["content"]) if response else ""


@dataclass(slots=True)
class Labelled:
    """Examples that share a prompt and become one tree. labels: `Response.labels` of each; empty for a lone prompt,
    whose responses are unknown. record: see `Tree.record`. unread, notes: counted in the audit, see `Row`."""

    examples: list[Example]
    labels: list[dict[str, float]]
    record: str = ""
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
