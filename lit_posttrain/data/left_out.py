"""What a chat template leaves out of a conversation without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_posttrain.data.bad_rows import BadRow
from lit_posttrain.data.rendering import (
    NAME_A_TEMPLATE,
    Conversation,
    Renderer,
    said_after_thinking,
    thought_of,
)


class LeftOut:
    """Compares conversations with what one template makes of them."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def of(self, talk: Conversation, whole: str, answers: Mapping[int, str]) -> list[str]:
        """What is left out, in words for the audit; nothing for most conversations.

        whole: the rendered conversation. answers: by their place the turns that are trained on, as they are trained.

        Raises:
            BadRow: a turn that is trained on calls tools, and the template does not write all of its calls.
        """
        found = []
        for k, said in answers.items():
            if missing := _missing_calls(talk.messages[k], said):
                calls = len(talk.messages[k]["tool_calls"])
                what = "the tool calls" if missing == calls else f"{missing} of {calls} tool calls"
                raise BadRow("not rendered", f"the chat template leaves out {what} of turn {k + 1}; {NAME_A_TEMPLATE}")
        before = [m for k, m in enumerate(talk.messages) if k not in answers]
        if any(_missing_calls(m, whole) for m in before):
            found.append("tool calls of earlier turns")
        if any(_missing_thought(talk.messages[k], said) for k, said in answers.items()):
            found.append("thoughts")
        if talk.tools and self._tools_missing(talk, whole):
            found.append("tools")
        return found

    def _tools_missing(self, talk: Conversation, whole: str) -> bool:
        names = [_name(tool) for tool in talk.tools or ()]
        if all(name in whole for name in names) and not any("tool_calls" in m for m in talk.messages):
            return False
        return self._same(talk, replace(talk, tools=None))

    def _same(self, talk: Conversation, other: Conversation) -> bool:
        try:
            return self._renderer.text(talk) == self._renderer.text(other)
        except BadRow:
            return False


def _missing_calls(message: Mapping[str, Any], said: str) -> int:
    """How many of a message's tool calls are not in a text. Calls of the same tool count one by one."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    names = Counter(str(call.get("name")) for call in calls)
    missing = sum(max(count - said.count(name), 0) for name, count in names.items())
    if missing or len(calls) < 2:
        return missing
    # a name may stand in the words too; what a call is given does not
    return sum(not all(_holds(said, value) for value in _values(call.get("arguments"))) for call in calls)


def _values(arguments: Any) -> list[Any]:
    return list(arguments.values()) if isinstance(arguments, Mapping) else []


def _holds(said: str, value: Any) -> bool:
    return not isinstance(value, str) or value.strip() in said or not value.isalnum()


def _missing_thought(message: Mapping[str, Any], said: str) -> bool:
    thought = thought_of(message)
    content = message["content"]
    if not thought and "</think>" in content:
        thought = content.split("</think>")[0].split("<think>")[-1].strip()
        return bool(said_after_thinking(content)) and thought not in said
    return bool(thought) and thought not in said


def _name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name")) if isinstance(function, Mapping) else str(tool)
