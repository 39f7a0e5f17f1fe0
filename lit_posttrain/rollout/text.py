"""Between messages and the token ids that engines speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.engine import Completion


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The token ids that ask for an answer to a conversation; plain text where the model has no chat template."""
    if tokenizer.chat_template is None:
        return list(tokenizer("\n".join(m["content"] for m in messages))["input_ids"])
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, KeyError) as problem:
        raise PostTrainError(
            f"the chat template refuses the conversation ({problem}); see what roles it takes"
        ) from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_text(tokenizer: Any, completion: Completion) -> str:
    """What a completion says, without its end token."""
    return str(tokenizer.decode(completion.tokens, skip_special_tokens=True)).strip()
