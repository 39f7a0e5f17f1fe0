"""A prompt that ends with the assistant's words is continued: no turn is closed and opened again, on any road."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import tiny

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.modules.prompts import PromptOptions
from lit_posttrain.data.render.trees import CONTINUED, TreeMaker
from lit_posttrain.data.store.build import TokenizeOptions
from lit_posttrain.rollout.text import prompt_ids
from lit_posttrain.types import PromptRecord

USER = {"role": "user", "content": "what is it"}
BEGUN = {"role": "assistant", "content": "It is"}
PROMPT = "<|im_start|>user\nwhat is it<|im_end|>\n<|im_start|>assistant\nIt is"
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRANSCRIPT = "Human: what is it\n\nAssistant: It is"
ROADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "completion": (TokenizeOptions(), {"completion": " a fox"}),
    "messages": (TokenizeOptions(), {"completion": [{"role": "assistant", "content": " a fox"}]}),
    "pair": (PreferenceOptions(), {"chosen": " a fox", "rejected": " a dog"}),
    "ranking": (PreferenceOptions(), {"responses": [" a fox", " a dog"], "ranks": [0, 1]}),
    "judged": (PreferenceOptions(), {"response1": " a fox", "response2": " a dog", "label": 1}),
    "single": (PreferenceOptions(), {"completion": " a fox", "label": True}),
    "prompt": (PromptOptions(), {"answer": "a fox"}),
}


@pytest.mark.parametrize("template", [tiny.CHATML, MARKED], ids=["plain", "marked"])
@pytest.mark.parametrize(
    ("road", "prompt"),
    [
        *((road, [USER, BEGUN]) for road in ROADS),
        # the texts of conversations for SFT are never read as transcripts
        *((road, TRANSCRIPT) for road, (options, _) in ROADS.items() if not isinstance(options, TokenizeOptions)),
    ],
)
def test_it_is_continued(road: str, prompt: Any, template: str) -> None:
    options, rest = ROADS[road]
    tokenizer = tiny.tokenizer(template)
    maker = TreeMaker(["rows.jsonl"], tokenizer, options)
    items = list(maker.items(0, Record({"prompt": prompt, **rest}, "rows.jsonl", 1)))
    ((tree, _),) = maker.trees(items, maker.encode(items))
    assert tokenizer.decode(tree.prompt) == PROMPT
    trained = [tokenizer.decode(r.tokens[r.loss_mask]) for r in tree.responses]
    assert trained == [f" a {animal}<|im_end|>" for animal in ("fox", "dog")][: len(trained)]
    assert bool(trained) == (road != "prompt")
    assert prompt_ids(tokenizer, [USER, BEGUN]) == tree.prompt.tolist()
    assert maker.audits[0].notes[CONTINUED].count == 1
    if road == "prompt":
        assert PromptRecord.of(tree).messages == [USER, BEGUN]


def test_a_conversations_last_answer_is_given_anew() -> None:
    maker = TreeMaker(["rows.jsonl"], tiny.tokenizer(), PromptOptions())
    items = list(maker.items(0, Record({"messages": [USER, BEGUN]}, "rows.jsonl", 1)))
    ((tree, _),) = maker.trees(items, maker.encode(items))
    assert tiny.tokenizer().decode(tree.prompt) == PROMPT.removesuffix("It is")
