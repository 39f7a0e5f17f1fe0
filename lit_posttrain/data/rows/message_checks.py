"""Compare messages, and check the order of their roles."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.message_keys import MARK, NOTES, REASONING, SYSTEM, UNUSED, Messages


def says(message: dict[str, Any]) -> bool:
    """True if a message has content: text, tool calls or thoughts."""
    return bool(message["content"].strip() or message.get("tool_calls") or any(message.get(k) for k in REASONING))


def same(first: Messages, second: Messages) -> bool:
    """True if two lists of messages are equal in everything but white space around text."""

    def told(messages: Messages) -> Messages:
        bare = [{k: v for k, v in m.items() if k not in (MARK, UNUSED, NOTES)} for m in messages]
        return [{k: v.strip() if isinstance(v, str) else v for k, v in m.items()} for m in bare]

    return told(first) == told(second)


def alike(first: Messages, second: Messages) -> bool:
    """True if two lists of messages are the same turns: roles, names, text up to white space around it, thoughts, and
    the names and arguments of tool calls. Ids, times and other keys may differ."""
    return list(map(_turn, first)) == list(map(_turn, second))


def _turn(message: dict[str, Any]) -> tuple[Any, ...]:
    calls = [
        (call["function"].get("name"), call["function"].get("arguments")) for call in message.get("tool_calls", ())
    ]
    thoughts = [str(message[key]).strip() for key in REASONING if message.get(key)]
    return message["role"], message.get("name"), message["content"].strip(), thoughts, calls


def check_order(messages: Messages, answered: bool = True) -> None:
    """Raise BadRow for an order of roles that no conversation has. Chat templates may be stricter, with errors of their
    own. answered: require an assistant turn."""
    roles = [m["role"] for m in messages]
    said = ", ".join(roles)
    if answered and "assistant" not in roles:
        raise BadRow("no assistant turn", f"no assistant turn (roles: {said}); there is nothing to train on")
    first = next((i for i, role in enumerate(roles) if role not in SYSTEM), None)
    if first is None:
        raise BadRow("empty prompt", "a system prompt without a user turn; add one")
    asked = roles.index("assistant", first) if "assistant" in roles[first:] else len(roles)
    if asked > first and not any(map(says, messages[first:asked])):
        raise BadRow(
            "empty prompt", "the turns before the assistant's are empty: nothing is asked; fill or remove the row"
        )
    turns = roles[first:]
    if not SYSTEM.isdisjoint(turns):
        raise BadRow("role order", f"a system turn after the first turn (roles: {said}); move it to the top")
    if roles[0] == "assistant":
        raise BadRow("role order", "the conversation starts with the assistant; put the user's turn before it")
    if "tool" in turns and any(
        role == "tool" and before not in ("assistant", "tool") for before, role in pairwise(["", *turns])
    ):
        raise BadRow("role order", f"a tool turn that no assistant turn called (roles: {said}); mend it")
