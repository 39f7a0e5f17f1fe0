"""The thought and the answer in an assistant's message: thoughts stand under a key of their own, or at the beginning of
the content, closed by a tag such as `</think>`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.rows.message_keys import REASONING

_CLOSING = re.compile(r"</([\w:]*(?:think|thought|reason)[\w:]*)>|\[/(THINK)\]")
_OPENING = re.compile(r"(?:<([^<>\s/|]{1,60})>|\[([A-Z_]{2,30})\])$")
_LONGEST = 62  # characters of such a tag


@dataclass(frozen=True)
class Content:
    """Content in pieces, of which the first three are empty without a thought. lead: what precedes the thought.
    closing: the tag that ends it, with the white space around. thought and answer have none around them. thought_at:
    where in the content the thought begins; rest_at: where everything after it begins."""

    lead: str
    thought: str
    closing: str
    answer: str
    thought_at: int
    rest_at: int


def pieces(content: str) -> Content:
    """The pieces of content. The last closing tag ends the thought, as in most templates; the opening tag may be
    missing, if the prompt has it."""
    found = list(_CLOSING.finditer(content))
    if not found:
        return Content("", "", "", content.strip(), 0, 0)
    closing = found[-1]
    opening = f"<{closing[1]}>" if closing[1] else f"[{closing[2]}]"
    lead, opened, _ = content[: closing.start()].partition(opening)
    begin = len(lead) + len(opening) if opened else 0
    thought, rest = content[begin : closing.start()], content[closing.end() :]
    return Content(
        lead.strip() if opened else "",
        thought.strip(),
        content[begin + len(thought.rstrip()) : len(content) - len(rest.lstrip())],
        rest.strip(),
        begin + len(thought) - len(thought.lstrip()),
        closing.end(),
    )


def thought_key(message: Mapping[str, Any]) -> str | None:
    """The key under which a message has a thought; None without such a key."""
    return next((key for key in REASONING if isinstance(message.get(key), str) and message[key].strip()), None)


def thought_of(message: Mapping[str, Any]) -> str:
    """A message's thought, in either place; empty without one."""
    key = thought_key(message)
    return str(message[key]).strip() if key else pieces(message["content"]).thought


def closes_thought(tag: str) -> bool:
    """True if a tag ends thoughts, by its name."""
    return _CLOSING.fullmatch(tag) is not None


def opened_thought(prompt: str) -> tuple[str, str] | None:
    """The tag that a prompt ends with (white space aside) if it can open a thought, and the one that closes it."""
    found = _OPENING.search(prompt.rstrip()[-_LONGEST:])
    if not found:
        return None
    name = found[1] or found[2]
    return (f"<{name}>", f"</{name}>") if found[1] else (f"[{name}]", f"[/{name}]")
