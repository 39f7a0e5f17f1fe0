"""Between messages and the token ids that engines speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.engine import Completion
from lit_posttrain.types import PromptRecord

Prompt = PromptRecord | Sequence[Mapping[str, Any]]


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The token ids that ask for an answer to a conversation; plain text where the model has no chat template. One that
    ends with words of the assistant is continued."""
    asked = prompt if isinstance(prompt, PromptRecord) else PromptRecord([dict(m) for m in prompt], {})
    if tokenizer.chat_template is None:
        return list(tokenizer("\n".join(m["content"] for m in asked.messages))["input_ids"])
    from jinja2 import TemplateError

    begun = asked.messages[-1]["role"] == "assistant"
    how = {"add_generation_prompt": not begun, "continue_final_message": begun, **asked.variables}
    try:
        text = tokenizer.apply_chat_template(asked.messages, tools=asked.tools, tokenize=False, **how)
    except (TemplateError, TypeError, KeyError, ValueError) as problem:
        raise PostTrainError(
            f"the chat template refuses the conversation ({problem}); see what roles it takes"
        ) from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_text(tokenizer: Any, completion: Completion) -> str:
    """What a completion says, without its end token."""
    return str(tokenizer.decode(completion.tokens, skip_special_tokens=True)).strip()
