"""Where an assistant turn ends: behind the token that generation must emit to stop, and before all that the template
writes for the next turn."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from lit_posttrain.data.as_generated import TAG, common
from lit_posttrain.data.bad_rows import BadRow
from lit_posttrain.data.rendering import Conversation, Renderer, said_after_thinking

_NEXT = "What is next?"
_ENOUGH = 20  # a template that writes prompts unasked does so everywhere


class TurnEnds:
    """Finds the ends of the turns of one template. control: matches a special token of the tokenizer."""

    def __init__(self, renderer: Renderer, control: re.Pattern[str], tokenizer: Any) -> None:
        self._renderer = renderer
        self._opening = {tokenizer.bos_token} - {tokenizer.eos_token, None}
        self._token = re.compile(f"{control.pattern}|{TAG}")
        self._closed = re.compile(f"(?:{control.pattern})\\s*$")
        self._opens = re.compile(f"\\s*(?:{control.pattern})")
        self._clean: Counter[bool] = Counter()
        self._behind: dict[tuple[str, bool], str] = {}

    def own(self, talk: Conversation, turn: str, prompt: str) -> str:
        """A rendered turn, the last one of `talk`, without what asks for another answer, which some templates write
        whether they are asked to or not. prompt: what asks for this one."""
        key = bool(talk.tools)
        if self._clean[key] >= _ENOUGH:
            return turn
        following = self._following(talk, talk.then({"role": "user", "content": _NEXT}))
        if following is None or following.startswith(turn):
            self._clean[key] += 1
            return turn
        at = common(turn, following)
        calls = talk.messages[-1].get("tool_calls", ())
        words = str(calls[-1]["function"].get("name")) if calls else said_after_thinking(talk.messages[-1]["content"])
        start = turn.rfind(words, 0, at)
        asked = prompt.rfind(talk.messages[-2]["content"].strip()) if len(talk.messages) > 1 else 0
        if start < 0 or not turn[at:].strip() or turn[at:].strip() not in prompt[max(asked, 0) :]:
            self._clean[key] += 1
            return turn
        tokens = list(self._token.finditer(turn, start + len(words), at))
        if len(tokens) > 1 and tokens[-1].end() == at:
            tokens.pop()  # every next turn begins with it, whoever speaks
        if not tokens:
            return turn[:at]
        end = tokens[0].end()
        for token in tokens[1:]:
            if token.start() != end:
                break
            end = token.end()
        return turn[:end]

    def behind(self, talk: Conversation, turn: str, prompt: str, following: dict[str, Any] | None) -> str:
        """What the template writes behind a turn before it goes on, if that is a special token and the turn itself
        ends without one: the token that generation stops at, such as GLM's <|user|>; else nothing. A token that stands
        before answers too cannot say that one is over.

        talk: ends with the turn. prompt: what asks for it. following: the message behind it, where there is one.
        """
        if self._closed.search(turn):
            return ""
        last = talk.messages[-1]
        role = following["role"] if following else "tool" if "tool_calls" in last else "user"
        key = role, bool(talk.tools)
        if key not in self._behind:
            found = self._look_behind(talk, turn, role)
            asked = talk.messages[-2]["content"].strip() if len(talk.messages) > 1 else ""
            opens = (
                found.strip() in self._opening or found.strip() in prompt[max(prompt.rfind(asked), 0) + len(asked) :]
            )
            self._behind[key] = "" if opens else found
        return self._behind[key]

    def _look_behind(self, talk: Conversation, turn: str, role: str) -> str:
        last = talk.messages[-1]
        if role == "tool" and "tool_calls" in last:
            call = last["tool_calls"][-1]
            name = str(call["function"].get("name"))
            answer = {"role": "tool", "name": name, "tool_call_id": call.get("id", "call00001"), "content": _NEXT}
        else:
            answer = {"role": "user", "content": _NEXT}
        following = self._following(talk, talk.then(answer))
        if following is None:
            return ""
        if not following.startswith(turn):  # as a template that drops earlier thoughts
            words = said_after_thinking(last["content"])
            if not words or not turn.rstrip().endswith(words) or following.count(words) != 1:
                return ""
            following = following[following.index(words) :]
            turn = words
        found = self._opens.match(following[len(turn) :])
        return found[0] if found else ""

    def _following(self, talk: Conversation, longer: Conversation) -> str | None:
        try:
            return self._renderer.text(longer)
        except BadRow:
            return None
