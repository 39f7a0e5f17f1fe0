"""From an example to text: the chat template, and which characters of a conversation are trained on.

Turn k of a conversation is what the template adds to its generation prompt, `messages[:k]` with
`add_generation_prompt`, when it renders `messages[:k+1]`. This is checked for every turn, here in characters and in
masks.py in tokens: with a prompt that differs between training and inference, the wrong thing is trained. `{%
generation %}` in a template narrows the turn down to what it marks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.render.as_generated import Turn
from lit_posttrain.data.render.left_out import LeftOut
from lit_posttrain.data.render.own_prompt import own_prompt
from lit_posttrain.data.render.plain_text import PlainText
from lit_posttrain.data.render.rendered import Rendered, TrainOn, special_tokens
from lit_posttrain.data.render.rendering import NAME_A_TEMPLATE, Conversation, Renderer
from lit_posttrain.data.render.thoughts import pieces
from lit_posttrain.data.render.turn_maker import TurnMaker
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.message_keys import SYSTEM
from lit_posttrain.errors import PostTrainError
from lit_posttrain.tokenizer import Tokenizer


class ConversationTemplate:
    """Renders examples for one tokenizer and tells which characters are trained on.

    train_on: "assistant", every assistant turn; "last", the last one; "completion", the assistant turns after the
    record's own prompt (the same as "assistant" for a whole conversation, which has no prompt of its own); "all", every
    token; "nothing", for prompts to be answered. Plain text is trained on as a whole, a plain completion after its
    prompt.

    rewritten, unanswered, altered: how many conversations were trained turn by turn, ended with turns without an answer
    (which are left out), or had words that the template changed or dropped. generated: how many turns were trained
    after a generation prompt that the template does not render in their place. missed: what the template left out of
    the last conversation.

    Raises:
        PostTrainError: the tokenizer is not a fast one.
    """

    def __init__(
        self, tokenizer: Tokenizer, train_on: TrainOn = "assistant", empty_turns: bool = False, scored: bool = False
    ) -> None:
        """empty_turns: assistant turns may be empty, as sampled responses may. scored: texts are read by a reward
        model, as the template renders them, and no answer is generated from their prompts."""
        if not getattr(tokenizer, "is_fast", False):
            raise PostTrainError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, and only fast ones map characters to tokens; "
                "save the model with a tokenizer.json"
            )
        self.train_on, self.empty_turns, self.scored = train_on, empty_turns, scored
        self.has_template = tokenizer.chat_template is not None
        self.rewritten = self.unanswered = self.altered = self.generated = 0
        self.missed: list[str] = []
        names = sorted(special_tokens(tokenizer).values(), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._renderer = Renderer(tokenizer)
        self._plain_text = PlainText(tokenizer)
        self._turns = TurnMaker(self._renderer, self._control, tokenizer, scored)
        self._left_out = LeftOut(self._renderer)
        self._roles_checked = False
        self._used: set[bool] = set()  # of the templates without and with tools, where a tokenizer has both
        self._tokenizer = tokenizer

    @property
    def dated(self) -> str:
        """The date that the template wrote into what was rendered; empty if it wrote none."""
        return self._renderer.now.date().isoformat() if any(map(self._renderer.dated, self._used)) else ""

    @property
    def remedy(self) -> str:
        """Template variables with which generation prompts and rendered turns would agree, if they do not."""
        return self._turns.remedy

    def render(self, example: Example) -> list[Rendered]:
        """The texts of one example: one, or one per trained turn if the turns cannot be trained in one text.

        Raises:
            BadRow: the template refuses the conversation, or no turn of it can be trained on.
            PostTrainError: turns cannot be told apart in the rendered text.
        """
        self.missed = []
        if not example.messages or not self.has_template:
            return [self._plain(example)]
        self._used.add(bool(example.tools))
        talk = Conversation(example.messages, example.tools, example.variables, example.continued, example.prompt_turns)
        if self.train_on == "nothing":
            return [self._asked(talk)]
        wanted = self._wanted(example)
        if self.train_on != "all" and wanted[-1] < len(talk.messages) - 1:
            self.unanswered += all(m["role"] != "assistant" for m in talk.messages[wanted[-1] + 1 :])
            talk = talk.first(wanted[-1] + 1)
        talk = self._renderer.spelled(talk)
        if self.train_on == "all":
            return [self._everything(talk, wanted)]
        try:
            turns = [self._turns.make(talk, k) for k in wanted]
        except BadRow as error:
            if error.reason != "prompt differs":
                raise
            raise BadRow(error.reason, f"{error}; {self._turns.fitting(talk, wanted) or NAME_A_TEMPLATE}") from error
        if not self._roles_checked and not talk.begun:
            self._check_roles(talk, wanted[0])
        if count := sum(turn.generated for turn in turns):
            self.generated += count
            if not self.remedy:
                self._turns.fitting(talk, wanted)
        self._check_words(talk, dict(zip(wanted, turns, strict=True)))
        texts = self._texts(turns)
        self.rewritten += len(texts) > 1
        return texts

    @cached_property
    def own_prompt(self) -> str:
        """The system prompt that the template adds to conversations without one; empty if it adds none."""
        return own_prompt(self._renderer, self._control, self._tokenizer) if self.has_template else ""

    def opens(self, example: Example) -> bool:
        """True if the template adds a system prompt of its own to an example."""
        none = bool(example.messages) and example.messages[0]["role"] not in SYSTEM
        return none and bool(self.own_prompt)

    def holds_control_tokens(self, example: Example) -> bool:
        """True if a message contains the text of a special token, which the tokenizer reads as that token."""
        return any(self._control.search(m["content"]) for m in example.messages)

    def _wanted(self, example: Example) -> list[int]:
        turns = [i for i, m in enumerate(example.messages) if m["role"] == "assistant"]
        if self.train_on == "last":
            turns = turns[-1:]
        if self.train_on == "completion":
            turns = [i for i in turns if i >= example.prompt_turns]
        if not turns:
            raise BadRow("no trained token", "no assistant turn after the prompt; there is nothing to train on")
        wanted = [i for i in turns if i not in example.untrained]
        if not wanted:
            raise NothingToLearn("marked not to be trained on", "all turns are marked not to be trained on")
        if self.train_on == "all" and len(wanted) < len(turns):
            raise BadRow(
                "mark",
                "a turn is marked not to be trained on, and --data.train_on all trains on every token; take "
                "--data.train_on assistant",
            )
        return wanted

    def _plain(self, example: Example) -> Rendered:
        if example.text is None:
            raise PostTrainError(
                "the tokenizer has no chat template, which messages and system prompts need; "
                "name one with --model.policy.chat_template FILE"
            )
        alone = self.train_on == "nothing"
        prompt, completion = example.text
        if prompt:
            prompt = self._plain_text.opened_once(prompt)
        else:
            completion = self._plain_text.opened_once(completion)
        text = prompt + (completion if alone else self._plain_text.ended_once(completion))
        turns = [] if alone else [(len(prompt), len(text))]
        return Rendered(text, turns, plain=True, everything=self.train_on == "all", unanswered=alone)

    def _asked(self, talk: Conversation) -> Rendered:
        talk = self._renderer.spelled(talk, prompt=not talk.begun)
        text = self._renderer.before(talk, len(talk.messages) - bool(talk.begun))
        said = talk.first(len(talk.messages) - bool(talk.begun))
        self.missed = self._left_out.of(said, {}, prompt=True)
        self.altered += any(m["content"].strip() not in text for m in talk.messages if m["role"] in ("user", "system"))
        return Rendered(text, [], unanswered=True)

    def _everything(self, talk: Conversation, wanted: Sequence[int]) -> Rendered:
        prompt, text = self._renderer.before(talk, wanted[0]), self._turns.whole(talk)
        start = len(prompt) if text.startswith(prompt) else 0
        whole = Turn(text, 0, len(text))
        self._check_words(talk, dict.fromkeys(wanted, whole))
        return Rendered(text, [(start, len(text))], everything=True)

    def _texts(self, turns: Sequence[Turn]) -> list[Rendered]:
        """One text of all turns, if each is a prefix of the last and continues its generation prompt; otherwise
        several."""
        whole = turns[-1]
        shared = [self._turns.within(turn, whole.text) for turn in turns]
        together = [turn for turn in shared if turn is not None]
        if len(together) == len(turns) and not any(turn.generated for turn in turns):
            marks = None if whole.marks is None else [span for turn in together for span in turn.marks or ()]
            spans = [(turn.start, turn.end) for turn in together]
            return [Rendered(whole.text, spans, marks, scored=self.scored)]
        return [
            Rendered(
                turn.text,
                [(turn.start, turn.end)],
                None if turn.marks is None else list(turn.marks),
                apart=turn.generated,
                scored=self.scored,
            )
            for turn in turns
        ]

    def _check_roles(self, talk: Conversation, k: int) -> None:
        """Once per run: a user turn and an assistant turn with the same words must be rendered differently."""
        self._roles_checked = True
        before, said = talk.first(k), talk.messages[k]
        try:
            same = self._renderer.text(talk.first(k + 1)) == self._renderer.text(before.then({**said, "role": "user"}))
        except BadRow:
            return
        if same and self._renderer.text(before, prompt=True) == self._renderer.text(before):
            raise PostTrainError(
                "the chat template renders the assistant's turns like the user's and ignores add_generation_prompt: "
                f"turns cannot be told apart; {NAME_A_TEMPLATE}"
            )

    def _check_words(self, talk: Conversation, turns: dict[int, Turn]) -> None:
        """Templates drop silently what they do not support: unknown tool calls, unexpected content."""
        answers = {k: turn.text[turn.start : turn.end] for k, turn in turns.items()}
        if not self._control.sub("", "".join(answers.values())).strip() and not self.empty_turns:
            raise BadRow("not rendered", "the chat template writes none of the assistant's words; " + NAME_A_TEMPLATE)
        whole = turns[max(turns)].text
        self.missed = self._left_out.of(talk, turns)
        # templates may quote what a tool said, and drop the thoughts of turns that are not trained on
        self.altered += any(
            (self._answer(talk, i) if i in answers else m["content"].strip()) not in answers.get(i, whole)
            for i, m in enumerate(talk.messages)
            if m["role"] not in ("tool", "assistant") or i in answers
        )

    @staticmethod
    def _answer(talk: Conversation, k: int) -> str:
        """The text of turn k, without its thought, and without words that the prompt ends with."""
        content: str = talk.messages[k]["content"]
        return pieces(content[len(talk.begun) :] if k == talk.begun_at else content).answer
