"""Between messages and the token ids that engines speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_posttrain.data.bad_rows import BadRow
from lit_posttrain.data.plain_text import PlainText
from lit_posttrain.data.rendering import Conversation, Renderer
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.engine import Completion
from lit_posttrain.types import PromptRecord

Prompt = PromptRecord | Sequence[Mapping[str, Any]]


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The token ids that ask for an answer to a conversation; plain text where the model has no chat template. One that
    ends with words of the assistant is continued.

    Raises:
        PostTrainError: the chat template refuses the conversation.
    """
    asked = prompt if isinstance(prompt, PromptRecord) else PromptRecord([dict(m) for m in prompt], {})
    if tokenizer.chat_template is None:
        text = PlainText(tokenizer).opened_once("\n".join(m["content"] for m in asked.messages))
        ids = list(tokenizer(text)["input_ids"])
        return ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] and not text.endswith(tokenizer.eos_token) else ids
    renderer, last = Renderer(tokenizer), asked.messages[-1]
    begun = last["content"] if last["role"] == "assistant" else ""
    talk = Conversation(asked.messages, asked.tools, asked.variables, begun, len(asked.messages) - 1)
    try:
        text = renderer.before(renderer.spelled(talk, prompt=not begun), len(asked.messages) - bool(begun))
    except BadRow as problem:
        raise PostTrainError(f"{str(problem).removesuffix('; mend it')}; see what roles it takes") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_text(tokenizer: Any, completion: Completion) -> str:
    """What a completion says, without its end token."""
    return str(tokenizer.decode(completion.tokens, skip_special_tokens=True)).strip()
