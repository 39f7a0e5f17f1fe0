"""Where an assistant turn ends: after the token that generation must emit to stop, and before everything that the
template writes for the next turn."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from lit_posttrain.data.render.as_generated import TAG
from lit_posttrain.data.render.places import Places, common
from lit_posttrain.data.render.rendering import Conversation, Renderer
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.tokenizer import Tokenizer

_NEXT = "What is next?"
_OTHER = "\ue002"  # of the private use area: no text holds it


class TurnEnds:
    """Finds the ends of turns of one template. control: matches a special token of the tokenizer. opens: matches one at
    the beginning of a text, white space aside."""

    def __init__(self, renderer: Renderer, places: Places, control: re.Pattern[str], tokenizer: Tokenizer) -> None:
        self._closed = re.compile(f"(?:{control.pattern})\\s*$")
        added = (token.content for token in tokenizer.added_tokens_decoder.values())
        self._longest = max(map(len, (*added, *tokenizer.all_special_tokens)), default=0)
        self.opens = re.compile(f"\\s*(?:{control.pattern})")
        self._renderer, self._places = renderer, places
        self._opening = {tokenizer.bos_token} - {tokenizer.eos_token, None}
        self._eos = tokenizer.eos_token
        self._known: tuple[Conversation | None, dict[str, Any], str | None] = None, {}, None
        self._token = re.compile(f"{control.pattern}|{TAG}")

    def closed(self, text: str) -> bool:
        """True if a text ends with a special token, white space aside."""
        end = text[max(len(text.rstrip()) - self._longest, 0) :]  # a search in all of it takes longer than rendering it
        return bool(self._closed.search(end))

    def own(self, talk: Conversation, turn: str, prompt: str, asked_next: str = "") -> str:
        """A rendered turn, the last one of `talk`, without what the template appends only because nothing follows: the
        next generation prompt, or words of the template's own. prompt: the turn's generation prompt. asked_next: the
        generation prompt after another speaker's message."""
        if self._eos and turn.rstrip().endswith(self._eos) and not self._says_more(talk, turn, prompt):
            return turn  # nothing asks with the end of a sequence
        if asked_next.startswith(turn):
            return turn  # the conversation goes on with all of it
        longer = _next(talk, None)
        following = self._following(talk, longer)
        if following is None or following.startswith(turn):
            return turn
        at = common(turn, following)
        if not turn[at:].strip():
            return turn
        words = self._places.end(talk)
        if words is None:
            return turn
        if words > at:  # as a template that drops earlier thoughts
            there = self._places.end_of(talk.then(longer), len(talk.messages) - 1)
            if there is None:
                return turn
            at = words + common(turn[words:], following[there:])
        inside = (token.start() for token in self._token.finditer(turn, words) if token.start() < at < token.end())
        at = next(inside, at)  # two tokens may begin alike
        while words < at < len(turn) and turn[at - 1].isalnum() and turn[at].isalnum():
            at -= 1  # the next turn begins with the same letters
        tokens = list(self._token.finditer(turn, words, at))
        line = max(words, turn.rfind("\n", words, at) + 1)
        if not tokens and turn[line:at].strip():
            at = line  # words that go on otherwise in the same line are not shared
        rest = turn[at:].strip()
        # words beside tool calls may stand behind the calls
        spoken = self._token.sub("", rest).strip() and not talk.messages[-1].get("tool_calls")
        asks = rest in self._asking(talk, prompt)
        if not rest or not (spoken or asks):
            return turn  # an end that the last turn alone has
        if not tokens:
            closes = not turn[words:at].strip() and not asks and self._always_said(talk, turn[at:])
            return turn if closes else turn[:at]
        if len(tokens) > 1 and (tokens[-1].end() == at or turn[tokens[-1].end() : at].strip()):
            tokens.pop()  # every next turn begins with it, whoever speaks
        end = tokens[0].end()
        for token in tokens[1:]:
            if token.start() != end:
                break
            end = token.end()
        return turn[:end]

    def _always_said(self, talk: Conversation, end: str) -> bool:
        """True if a conversation ends with the same words whatever it says: they are its end, as "### End" is, rather
        than a reminder of the question."""
        others = [{**m, "content": _OTHER * len(m["content"])} for m in talk.messages]
        try:
            return self._renderer.text(replace(talk, messages=others)).endswith(end)
        except BadRow:
            return True  # a template that takes no other words; those of other turns are still looked for

    def _says_more(self, talk: Conversation, turn: str, prompt: str) -> bool:
        """True if words may follow those of the last message."""
        words = talk.messages[-1]["content"].strip()
        at = turn.find(words, len(prompt) if turn.startswith(prompt) else 0)
        if talk.messages[-1].get("tool_calls") or not words or at < 0:
            return False
        return bool(self._token.sub("", turn[at + len(words) :]).strip())

    def behind(self, talk: Conversation, turn: str, prompt: str, following: dict[str, Any] | None) -> str:
        """What the template writes after a turn before it continues, if that is a special token and the turn itself
        ends without one: the token that stops generation, such as GLM's <|user|>; otherwise nothing. A token that also
        precedes answers cannot mark the end of one.

        talk: ends with the turn. prompt: its generation prompt. following: the message after it, if any.
        """
        if self.closed(turn):
            return ""
        longer = _next(talk, following)
        text = self._following(talk, longer)
        if text is None:
            return ""
        if not text.startswith(turn):  # as a template that drops earlier thoughts
            here, there = self._places.end(talk), self._places.end_of(talk.then(longer), len(talk.messages) - 1)
            if here is None or there is None or not text.startswith(turn[here:], there):
                return ""
            text, turn = text[there:], turn[here:]
        found = self.opens.match(text[len(turn) :])
        if found is None or found[0].strip() in self._opening or found[0].strip() in self._asking(talk, prompt):
            return ""
        return found[0]

    def _asking(self, talk: Conversation, prompt: str) -> str:
        """The part of a generation prompt after everything that was said before the last message."""
        before = talk.first(len(talk.messages) - 1)
        return prompt[(self._places.end(before, prompt=True) if before.messages else None) or 0 :]

    def _following(self, talk: Conversation, message: dict[str, Any]) -> str | None:
        """The rendered conversation with one more message; None if the template refuses it. Cached: `own` and `behind`
        mostly need the same one."""
        known, what, text = self._known
        if known is talk and what == message:
            return text
        try:
            text = self._renderer.text(talk.then(message))
        except BadRow:
            text = None
        self._known = talk, message, text
        return text


def _next(talk: Conversation, following: dict[str, Any] | None) -> dict[str, Any]:
    """A message that could follow the last one, in the role of the one that does. following: that message, if any."""
    calls = talk.messages[-1].get("tool_calls")
    if not calls or (following is not None and following["role"] != "tool"):
        return {"role": "user", "content": _NEXT}
    call = calls[-1]
    name = str(call["function"].get("name"))
    return {"role": "tool", "name": name, "tool_call_id": call.get("id", "call00001"), "content": _NEXT}
