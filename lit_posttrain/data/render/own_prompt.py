"""The system prompt that a chat template adds to conversations without one."""

from __future__ import annotations

import re

from lit_posttrain.data.render.as_generated import TAG
from lit_posttrain.data.render.places import common
from lit_posttrain.data.render.rendering import Conversation, Renderer
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.message_keys import Messages
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer

_ASKS, _SAYS, _MORE, _SYSTEM = "A first question?", "An answer.", "Another question?", "Answer in verse."


def own_prompt(renderer: Renderer, control: re.Pattern[str], tokenizer: Tokenizer) -> str:
    """What a template writes before the first user turn but not before a later one; empty if that is only special
    tokens, or if it remains next to a system prompt. control: matches special tokens of the tokenizer."""
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
    words = re.sub(f"{control.pattern}|{TAG}", "", found).strip()
    return found if re.search(r"\w", words) and not _always(renderer, turns, words) else ""


def _always(renderer: Renderer, turns: Messages, words: str) -> bool:
    """True if a template writes `words` next to a system prompt too, or refuses system prompts."""
    try:
        return words in renderer.text(renderer.spelled(Conversation([{"role": "system", "content": _SYSTEM}, *turns])))
    except BadRow:
        return True
