"""From an example to text: the chat template, and which characters of a conversation are trained on.

A template with `{% generation %}` says itself what the assistant wrote, and is trusted. From any other the spans are
the difference of rendered prefixes: turn k is what `messages[:k+1]` adds to `messages[:k]` with the generation
prompt. That difference is checked, here in characters and in masks.py in tokens: a prompt that looks otherwise in
training than in generation trains the wrong thing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from lit_posttrain.data.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.example import Example
from lit_posttrain.errors import PostTrainError

TrainOn = Literal["assistant", "last", "completion", "all", "nothing"]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
NAME_A_TEMPLATE = "name a corrected template with --model.policy.chat_template FILE"


@dataclass(slots=True)
class Rendered:
    """Text to be tokenised. turns: (start, end) in characters of every trained turn, in order.

    plain: no chat template was used; special tokens are added by the tokenizer and an end-of-sequence token follows.
    exact: the spans are the template's own word; white space after an end token stays in them.
    everything: every token is trained on; `turns` then only says where the prompt ends.
    unanswered: a prompt alone, which the model is to answer.
    """

    text: str
    turns: list[tuple[int, int]]
    plain: bool = False
    exact: bool = False
    everything: bool = False
    unanswered: bool = False


class ConversationTemplate:
    """Renders examples for one tokenizer and says which characters are trained on.

    train_on: "assistant", every assistant turn; "last", the last one; "completion", the assistant turns after the
        record's own prompt (the same as "assistant" for a whole conversation, which has no prompt of its own);
        "all", every token; "nothing", for prompts that are to be answered. Plain text is trained on as a whole, a
        plain completion after its prompt.

    rewritten, unanswered, altered: how many conversations were trained turn by turn, ended in turns that nobody
    answered, which are left out, or had words that the template did not write.

    Raises:
        PostTrainError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, train_on: TrainOn = "assistant", empty_turns: bool = False) -> None:
        """empty_turns: whether an assistant turn may say nothing, as a sampled response may."""
        if not getattr(tokenizer, "is_fast", False):
            raise PostTrainError(
                f"{type(tokenizer).__name__} is no fast tokenizer, and only those map characters to tokens; "
                "save the model with a tokenizer.json"
            )
        self.train_on, self.empty_turns = train_on, empty_turns
        self.has_template = tokenizer.chat_template is not None
        self.rewritten = 0
        self.unanswered = 0
        self.altered = 0
        self._tokenizer = tokenizer
        self._variables = dict(tokenizer.special_tokens_map)
        self._templates: dict[bool, str] = {}
        names = sorted(special_tokens(tokenizer).values())
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._roles_checked = False

    @property
    def dated(self) -> bool:
        """Whether the template writes the day's date into what it renders."""
        return self.has_template and "strftime_now" in self._template(None)

    def render(self, example: Example) -> list[Rendered]:
        """The texts of one example: one, or one per trained turn where the template rewrites earlier turns.

        Raises:
            BadRow: the template refuses the conversation, or no turn of it is trained on.
            PostTrainError: turns cannot be told apart in what the template renders.
        """
        if not example.messages or not self.has_template:
            return [self._plain(example)]
        messages = example.messages
        if self.train_on == "nothing":
            prompt = self._before(example, len(messages) - bool(example.continued))
            return [Rendered(prompt, [], unanswered=True)]
        wanted = self._wanted(example)
        if self.train_on != "all" and wanted[-1] < len(messages) - 1:
            self.unanswered += all(m["role"] != "assistant" for m in messages[wanted[-1] + 1 :])
            messages = messages[: wanted[-1] + 1]
        if self.train_on == "all":
            texts = [self._everything(messages, example, wanted[0])]
        elif _GENERATION.search(self._template(example.tools)):
            texts = [self._marked(messages, example, wanted)]
        else:
            texts = self._compared(messages, example, wanted)
        self._check_words(messages, wanted, texts)
        return texts

    def holds_control_tokens(self, example: Example) -> bool:
        """Whether a message contains the text of a special token, which the tokenizer reads as that token."""
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
        prompt, completion = example.text
        text = prompt + completion
        alone = self.train_on == "nothing"
        turns = [] if alone else [(len(prompt), len(text))]
        return Rendered(text, turns, plain=True, everything=self.train_on == "all", unanswered=alone)

    def _before(self, example: Example, k: int) -> str:
        """What the model is shown before it says turn k, or what remains of it."""
        if example.continued and k == example.prompt_turns:
            begun = {**example.messages[k], "content": example.continued}
            return self._render([*example.messages[:k], begun], example.tools, begun=True)[0]
        return self._text(example.messages[:k], example.tools, prompt=True)

    def _everything(self, messages: list[dict[str, Any]], example: Example, first: int) -> Rendered:
        text = self._text(messages, example.tools)
        prompt = self._before(example, first)
        start = len(prompt) if text.startswith(prompt) else 0
        return Rendered(text, [(start, len(text))], everything=True)

    def _marked(self, messages: list[dict[str, Any]], example: Example, wanted: list[int]) -> Rendered:
        text, spans = self._render(messages, example.tools, spans=True)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if len(spans) == len(turns):
            spans = [span for i, span in zip(turns, spans, strict=True) if i in wanted]
        elif wanted != turns:
            start = _common(self._before(example, wanted[0]), text)
            spans = [span for span in spans if span[1] > start]
        if example.continued and example.prompt_turns in wanted:
            start = _common(self._before(example, example.prompt_turns), text)
            spans = [(max(span[0], start), span[1]) if span[0] < start < span[1] else span for span in spans]
        if not any(end > start for start, end in spans):
            raise BadRow("no trained token", "the template's {% generation %} marks nothing in this conversation")
        return Rendered(text, spans, exact=True)

    def _compared(self, messages: list[dict[str, Any]], example: Example, wanted: list[int]) -> list[Rendered]:
        tools = example.tools
        whole = self._text(messages, tools)
        pairs = []
        for k in wanted:
            prompt = self._before(example, k)
            turn = whole if k == len(messages) - 1 else self._text(messages[: k + 1], tools)
            self._check_turn(prompt, turn, messages, k)
            pairs.append((prompt, turn))
        if not self._roles_checked and not example.continued:
            self._check_roles(messages, tools, wanted[0], *pairs[0])
        if all(whole.startswith(turn) for _, turn in pairs):
            return [Rendered(whole, [(len(prompt), len(turn)) for prompt, turn in pairs])]
        self.rewritten += 1
        return [Rendered(turn, [(len(prompt), len(turn))]) for prompt, turn in pairs]

    def _check_turn(self, prompt: str, turn: str, messages: list[dict[str, Any]], k: int) -> None:
        if not turn.startswith(prompt):
            at = _common(prompt, turn)
            here = slice(max(at - 20, 0), at + 30)
            raise PostTrainError(
                f"the chat template renders the prompt of turn {k + 1} as ...{prompt[here]!r} and the conversation "
                f"with the answer as ...{turn[here]!r}: training would show the model another prompt than use does; "
                + NAME_A_TEMPLATE
            )
        if len(turn) == len(prompt):
            raise PostTrainError(
                f"the chat template leaves out turn {k + 1} ({messages[k]['role']}): there is nothing to train on; "
                + NAME_A_TEMPLATE
            )

    def _check_roles(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, k: int, prompt: str, turn: str
    ) -> None:
        """Once per run: a user's turn with the same words must not look like the assistant's."""
        self._roles_checked = True
        try:
            same = turn == self._text([*messages[:k], {**messages[k], "role": "user"}], tools)
        except BadRow:
            return
        if same and prompt == self._text(messages[:k], tools):
            raise PostTrainError(
                "the chat template renders the assistant's turns like the user's and ignores add_generation_prompt: "
                f"turns cannot be told apart; {NAME_A_TEMPLATE}"
            )

    def _check_words(self, messages: list[dict[str, Any]], wanted: list[int], texts: list[Rendered]) -> None:
        """Templates leave things out without a word: tool calls that they do not know, content they do not expect."""
        trained = "".join(r.text[start:end] for r in texts for start, end in r.turns)
        if not self._control.sub("", trained).strip() and not self.empty_turns:
            raise BadRow("not rendered", "the chat template writes none of the assistant's words; " + NAME_A_TEMPLATE)
        for k in wanted:
            for call in messages[k].get("tool_calls", ()):
                if str(call["function"].get("name")) not in trained:
                    raise BadRow("not rendered", f"the chat template leaves out the tool calls; {NAME_A_TEMPLATE}")
        # templates may quote what a tool said, and drop the reasoning of turns that are not trained on
        said = [trained if i in wanted else texts[-1].text for i in range(len(messages))]
        self.altered += any(
            m["content"].strip() not in text
            for i, (m, text) in enumerate(zip(messages, said, strict=True))
            if m["role"] not in ("tool", "assistant") or i in wanted
        )

    def _text(self, messages: list[dict[str, Any]], tools: list[Any] | None, prompt: bool = False) -> str:
        return self._render(messages, tools, prompt=prompt)[0]

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        prompt: bool = False,
        spans: bool = False,
        begun: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        def render(conversation: list[dict[str, Any]]) -> Any:
            return render_jinja_template(
                [conversation],
                tools=tools,
                chat_template=self._template(tools),
                return_assistant_tokens_mask=spans,
                add_generation_prompt=prompt,
                continue_final_message=begun,
                **self._variables,
            )

        try:
            try:
                texts, marked = render(messages)
            except TypeError:
                # a few templates concatenate the arguments of tool calls as text instead of writing them as JSON
                texts, marked = render(_with_text_arguments(messages))
        except TemplateSyntaxError as error:
            raise PostTrainError(
                f"the chat template is no valid Jinja (line {error.lineno}: {error.message}); {NAME_A_TEMPLATE}"
            ) from error
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadRow(
                "template refused", f"the chat template refuses the conversation ({reason}); mend it"
            ) from error
        return texts[0], marked[0] if spans else []

    def _template(self, tools: list[Any] | None) -> str:
        key = bool(tools)
        if key not in self._templates:
            self._templates[key] = self._tokenizer.get_chat_template(tools=tools)
        return self._templates[key]


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and names of all tokens that the tokenizer calls special."""
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def _with_text_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        arguments = call["function"].get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": text}}

    return [{**m, "tool_calls": [as_text(c) for c in m["tool_calls"]]} if "tool_calls" in m else m for m in messages]


def _common(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
