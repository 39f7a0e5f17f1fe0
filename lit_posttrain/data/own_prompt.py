"""The system prompt that a chat template adds by itself to conversations that bring none."""

from __future__ import annotations

import re
from typing import Any

from lit_posttrain.data.as_generated import TAG
from lit_posttrain.data.bad_rows import BadRow
from lit_posttrain.data.places import common
from lit_posttrain.data.rendering import Conversation, Renderer
from lit_posttrain.errors import PostTrainError

_ASKS, _SAYS, _MORE = "A first question?", "An answer.", "Another question?"


def own_prompt(renderer: Renderer, control: re.Pattern[str], tokenizer: Any) -> str:
    """What a template writes before the first user turn that it does not write before a later one; empty where that
    is nothing but special tokens. control: matches those of the tokenizer."""
    turns = [{"role": "user", "content": _ASKS}, {"role": "assistant", "content": _SAYS}]
    try:
        talk = renderer.spelled(Conversation(turns))
        one, two = renderer.text(talk), renderer.text(talk.then({"role": "user", "content": _MORE}))
    except (BadRow, PostTrainError):  # no template for conversations without tools
        return ""
    before, later = one[: max(one.find(_ASKS), 0)], two[: max(two.rfind(_MORE), 0)]
    header = later[len(one) :] if later.startswith(one) else ""
    if not header or not before.endswith(header):
        header = before[len(before) - common(before[::-1], later[::-1]) :]
    bos = tokenizer.bos_token or ""
    found = before.removesuffix(header)
    found = found if header.startswith(bos) else found.removeprefix(bos)  # in ChatML it begins every turn
    return found if re.search(r"\w", re.sub(f"{control.pattern}|{TAG}", "", found)) else ""
