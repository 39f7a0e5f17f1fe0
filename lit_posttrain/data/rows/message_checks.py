"""Conversations compared, and checked for an order that can be."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.message_keys import MARK, NOTES, REASONING, SYSTEM, UNUSED


def says(message: dict[str, Any]) -> bool:
    """Whether a message holds anything: words, calls or thoughts."""
    return bool(message["content"].strip() or message.get("tool_calls") or any(message.get(k) for k in REASONING))


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    """Whether two runs of messages say the same: words up to white space around them, calls, thoughts and all else."""

    def told(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        bare = [{k: v for k, v in m.items() if k not in (MARK, UNUSED, NOTES)} for m in messages]
        return [{k: v.strip() if isinstance(v, str) else v for k, v in m.items()} for m in bare]

    return told(first) == told(second)


def alike(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    """Whether two runs of messages are the same turns: roles, names, words up to white space around them, thoughts, and
    what is called with which arguments. Ids, times and other notes may differ."""
    return list(map(_turn, first)) == list(map(_turn, second))


def _turn(message: dict[str, Any]) -> tuple[Any, ...]:
    calls = [
        (call["function"].get("name"), call["function"].get("arguments")) for call in message.get("tool_calls", ())
    ]
    thoughts = [str(message[key]).strip() for key in REASONING if message.get(key)]
    return message["role"], message.get("name"), message["content"].strip(), thoughts, calls


def check_order(messages: list[dict[str, Any]], answered: bool = True) -> None:
    """Raise BadRow where no conversation runs like this. Templates may be stricter, and say so themselves. answered:
    whether the assistant must have had a turn."""
    roles = [m["role"] for m in messages]
    said = ", ".join(roles)
    if answered and "assistant" not in roles:
        raise BadRow("no assistant turn", f"no assistant turn (roles: {said}); there is nothing to train on")
    first = next((i for i, role in enumerate(roles) if role not in SYSTEM), None)
    if first is None:
        raise BadRow("empty prompt", "a system prompt, and nobody asks anything; add the user's turn")
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
