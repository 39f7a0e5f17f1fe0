"""Words that a template also writes by itself: `hi` in `<think>`, `end` in `<|im_end|>`, `user` as a speaker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from helpers.published import fitting_tokenizer, made_of, published
from helpers.shapes import SHAPES as FAMILIES
from helpers.talks import Message, Talk

from lit_posttrain.data.render.masks import TokenMask
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.rows.bad_rows import BadRow

TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in published()} | FAMILIES
# nothing in any template; the rest stand in tags, in the names of speakers, or in what templates say by themselves
ASKED, SAID, THOUGHT = "Quokka7", "Wombat8", "Numbat9"
WORDS = ["c", "e", "i", "hi", "in", "of", "end", "user", "think", "model", "assistant", "message", "sentence", "turn"]


def _plain(asked: str, said: str, thought: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def _thinking(asked: str, said: str, thought: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said, "reasoning_content": thought}]


def _thinking_in_content(asked: str, said: str, thought: str) -> list[Message]:
    return _plain(asked, f"<think>\n{thought}\n</think>\n\n{said}", thought)


def _closing_a_thought(asked: str, said: str, thought: str) -> list[Message]:
    return _plain(asked, f"{thought}\n</think>\n\n{said}", thought)


def _calling(asked: str, said: str, thought: str) -> list[Message]:
    call = {"type": "function", "id": "call00001", "function": {"name": "river_level", "arguments": {"name": said}}}
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": [call]},
        {"role": "tool", "name": "river_level", "tool_call_id": "call00001", "content": f'{{"{asked}": 3}}'},
        {"role": "assistant", "content": said, "reasoning_content": thought},
    ]


SHAPES: list[Callable[[str, str, str], list[Message]]] = [
    _plain,
    _thinking,
    _thinking_in_content,
    _closing_a_thought,
    _calling,
]


def _made(tokenizer: Any, messages: list[Message]) -> list[tuple[str, str]] | str:
    """Prompts and what is trained behind them; why not, where nothing is."""
    try:
        trees = made_of(ConversationTemplate(tokenizer), TokenMask(tokenizer), Talk("", "", messages))
    except BadRow as error:
        return error.reason
    return [
        (tokenizer.decode(tree.prompt), tokenizer.decode(tree.responses[0].tokens[tree.responses[0].loss_mask]))
        for tree in trees
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__.strip("_"))
@pytest.mark.parametrize("name", TEMPLATES)
def test_other_words_change_nothing_but_themselves(name: str, shape: Callable[..., list[Message]]) -> None:
    tokenizer = fitting_tokenizer(TEMPLATES[name])
    like = _made(tokenizer, shape(ASKED, SAID, THOUGHT))

    def expected(*words: str) -> list[tuple[str, str]] | str:
        def put(text: str) -> str:
            for old, new in zip((ASKED, SAID, THOUGHT), words, strict=True):
                text = text.replace(old, new)
            return text

        return like if isinstance(like, str) else [(put(prompt), put(said)) for prompt, said in like]

    wrong = {}
    for word in WORDS:
        for words in ((word, SAID, THOUGHT), (ASKED, word, THOUGHT), (ASKED, SAID, word), (word, word, word)):
            if (made := _made(tokenizer, shape(*words))) != expected(*words):
                wrong[words] = made
    assert not wrong, f"{like} became {wrong}"
