"""One assistant turn of a conversation: its text, and the part of it that is trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from lit_posttrain.data.render.as_generated import TAG, Joiner, Turn
from lit_posttrain.data.render.places import Places
from lit_posttrain.data.render.rendering import NAME_A_TEMPLATE, Conversation, Renderer
from lit_posttrain.data.render.thoughts import thought_of
from lit_posttrain.data.render.turn_ends import TurnEnds
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.template_variables import compared_with, taken
from lit_posttrain.tokenizer import Tokenizer

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TRIES = 3
_OTHERS = 0xF0000  # the first character of a private use plane: no text holds them


@lru_cache(maxsize=64)
def _marks(template: str) -> bool:
    """True if a template marks the assistant's words itself, with `{% generation %}`."""
    return bool(_GENERATION.search(template))


class TurnMaker:
    """Makes turns with one template. control: matches a special token of the tokenizer. scored: see
    `ConversationTemplate`. remedy: see `fitting`."""

    def __init__(self, renderer: Renderer, control: re.Pattern[str], tokenizer: Tokenizer, scored: bool) -> None:
        self.remedy = ""
        self._scored = scored
        self._control = control
        self._token = re.compile(f"{control.pattern}|{TAG}")
        self._renderer = renderer
        places = Places(renderer)
        self._joiner = Joiner(places, control)
        self._ends = TurnEnds(renderer, places, control, tokenizer)
        self._tried = 0
        self._found: tuple[str, Any] | None = None

    def whole(self, talk: Conversation) -> str:
        """The text of a conversation, without the generation prompt of another answer."""
        text = self._renderer.text(talk)
        if talk.messages[-1]["role"] != "assistant":
            return text
        return self._ends.own(talk, text, self._renderer.text(talk.first(len(talk.messages) - 1), prompt=True))

    def make(self, talk: Conversation, k: int) -> Turn:
        """Turn k after its generation prompt.

        Raises:
            BadRow: the template refuses the turn, leaves it out, renders it after another prompt, or writes words of
                other turns into it.
        """
        turn = self._made(talk, k)
        if not self._scored and (other := self._other_in(turn, talk.first(k + 1))) is not None:
            raise BadRow(
                "words of other turns",
                f"the chat template writes words of turn {other + 1} ({talk.messages[other]['role']}) into turn "
                f"{k + 1} ({talk.messages[k]['role']}), where they would be trained on; {NAME_A_TEMPLATE}",
            )
        return turn

    def _other_in(self, turn: Turn, talk: Conversation) -> int | None:
        """The index of a message whose words are trained on together with the last one's; None if there is none. Found
        by replacing its characters, and looking for the replacements in the turn."""
        *before, message = talk.messages
        rest = turn.text[turn.start : turn.end]
        for words in (message["content"].strip(), thought_of(message)):
            rest = rest.replace(words, "", 1)
        if not re.search(r"\w", self._token.sub("", rest)):
            return None
        places = [i for i, m in enumerate(before) if m["content"].strip()]
        for group in (places, *([i] for i in places)):  # one by one only where the template refuses them together
            others = [
                {**m, "content": chr(_OTHERS + i) * len(m["content"])} if i in group else m
                for i, m in enumerate(before)
            ]
            made = replace(talk, messages=[*others, message])
            try:
                if turn.text[turn.start : turn.end] in self._renderer.text(made):
                    return None
                other = self._made(made, len(before))
            except BadRow:
                continue
            spans = other.marks or [(other.start, other.end)]
            said = "".join(other.text[start:end] for start, end in spans)
            found = next((i for i in group if chr(_OTHERS + i) in said), None)
            if found is not None or group is places:
                return found
        return None

    def _made(self, talk: Conversation, k: int) -> Turn:
        here, message = talk.first(k + 1), talk.messages[k]
        marked = _marks(self._renderer.template(bool(talk.tools)))
        text, spans = self._renderer.marked(here) if marked else (self._renderer.text(here), [])
        prompt = self._renderer.before(talk, k)
        if self._scored:
            turn = self._as_rendered(text, prompt, talk, k)
        else:
            own = self._ends.own(here, text, prompt, self._asked_next(talk, k))
            turn = self._joiner.join(prompt, own, here)
            following = talk.messages[k + 1] if k + 1 < len(talk.messages) else None
            behind = self._ends.behind(here, own, prompt, following)
            turn = replace(turn, text=turn.text + behind, end=turn.end + len(behind))
        if turn.end == turn.start:
            raise BadRow(
                "not rendered",
                f"the chat template leaves out turn {k + 1} ({message['role']}): there is nothing to train on; "
                + NAME_A_TEMPLATE,
            )
        return self._narrowed(turn, spans) if marked else turn

    def _asked_next(self, talk: Conversation, k: int) -> str:
        """The generation prompt of the turn after turn k, which mostly needs it too, if a single message stands between
        them; otherwise, or if the template refuses it, empty."""
        roles = [message["role"] for message in talk.messages[k + 1 : k + 3]]
        if len(roles) < 2 or roles[0] == "assistant" or roles[1] != "assistant":
            return ""
        try:
            return self._renderer.text(talk.first(k + 2), prompt=True)
        except BadRow:
            return ""

    def _as_rendered(self, text: str, prompt: str, talk: Conversation, k: int) -> Turn:
        """The turn in the text that a reward model reads. If the generation prompt is not a part of it, the prompt is
        everything that was said before.

        Raises:
            BadRow: the template renders that differently before an answer.
        """
        if not text.startswith(prompt):
            prompt = self._renderer.text(talk.first(k))
        if not text.startswith(prompt):
            raise BadRow(
                "prompt differs",
                f"the chat template renders the turns before turn {k + 1} differently than before an answer",
            )
        return Turn(text, len(prompt), len(text), cut=len(prompt))

    def _narrowed(self, turn: Turn, spans: Sequence[tuple[int, int]]) -> Turn:
        """The turn, narrowed to what `{% generation %}` marks. What generation has to write first to get there is
        trained on too, and so is an end token right after it, without which the model would never stop."""
        if turn.cut is None:
            return turn
        moved = [(start - turn.cut + turn.start, end - turn.cut + turn.start) for start, end in spans]
        inside = [(max(start, turn.start), min(end, turn.end)) for start, end in moved if end > turn.start]
        inside = [(start, end) for start, end in inside if end > start]
        if not inside:
            raise BadRow("no trained token", "the template's {% generation %} marks nothing in this conversation")
        last = inside[-1][1]
        found = None if self._ends.closed(turn.text[:last]) else self._ends.opens.match(turn.text, last)
        inside[0] = turn.start, inside[0][1]
        inside[-1] = inside[-1][0], found.end() if found else last
        return replace(turn, marks=tuple(inside))

    def within(self, turn: Turn, text: str) -> Turn | None:
        """The turn in the text of a longer conversation, if it is a prefix of it; after its own end, a last turn may
        have an end of the whole text (Phi-3)."""
        if text.startswith(turn.text[: turn.end]):
            return turn
        at = self._joiner.parting(text, turn.text)
        closed = self._ends.closed(turn.text[turn.start : at])
        if not closed or self._control.sub("", turn.text[at : turn.end]).strip():
            return None
        marks = turn.marks and tuple((start, min(end, at)) for start, end in turn.marks if start < at)
        return replace(turn, end=at, marks=marks)

    def fitting(self, talk: Conversation, wanted: Sequence[int]) -> str:
        """Template variables with which the generation prompts and the rendered turns of a conversation agree, as a
        remedy; empty if none is known."""
        if self._found and self._fits(talk, wanted, *self._found):
            return self.remedy
        if self._tried >= _TRIES:
            return ""
        self._tried += 1
        template = self._renderer.template(bool(talk.tools))
        names = [name for name in taken(template) if name not in talk.variables]
        for name in sorted(names, key=lambda name: "think" not in name):
            for value in (False, True, *compared_with(template, name)):
                if self._fits(talk, wanted, name, value):
                    shown = f"{{{name}: {value if isinstance(value, str) else str(value).lower()}}}"
                    self._found = name, value
                    self.remedy = f"both agree with --model.policy.template_variables '{shown}'"
                    return self.remedy
        return ""

    def _fits(self, talk: Conversation, wanted: Sequence[int], name: str, value: object) -> bool:
        tried = replace(talk, variables={name: value, **talk.variables})
        try:
            return not any(self.make(tried, k).generated for k in wanted)
        except BadRow:
            return False
