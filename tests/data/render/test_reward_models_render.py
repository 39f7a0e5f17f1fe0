"""Reward models read conversations as the template renders them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.templates import ASK, HEAD, LAST, MORE, OPENS, SAY, SWITCH, TALK, THOUGHTS, ZULU, build, tokenizer

from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.inference.score import ScoreOptions


@pytest.mark.parametrize(("prompt", "turn", "plain", "thinking"), THOUGHTS.values(), ids=THOUGHTS)
def test_reward_models_read_what_is_rendered(tmp_path: Path, prompt: str, turn: str, plain: str, thinking: str) -> None:
    template = (
        HEAD
        + f"{{{{ ({turn!r} if m.role == 'assistant' else '') + m.content + '<|im_end|>\n' }}}}{{% endfor %}}"
        + OPENS.replace("assistant\n'", f"assistant\n' + {prompt!r}")
    )
    made = tokenizer(template, "<|channel>", "<channel|>")
    made.add_tokens(["\n\n"])
    row = {"prompt": TALK[:3], "chosen": [LAST], "rejected": [SAY]}
    store, audit = build(tmp_path, made, row, options=PreferenceOptions(scored=True))
    texts = [[*store[0].prompt.tolist(), *response.tokens.tolist()] for response in store[0].responses]
    assert texts == [list(made.apply_chat_template([*TALK[:3], m], return_dict=False)) for m in (LAST, SAY)]
    assert audit.files[0].generated.count == 0


def test_what_reward_models_read_counts_as_used(tmp_path: Path) -> None:
    made = tokenizer("{% if tools %}{{ tools | tojson }}{% endif %}" + SWITCH, "<|x|>")
    thinks = {**SAY, "reasoning_content": "hm"}
    sides = {"chosen": [{**thinks, "note": 1}], "rejected": [{**LAST, **thinks, "content": "no <|x|>"}]}
    row = {"prompt": [ASK], "tools": [ZULU], **sides}
    store, audit = build(tmp_path, made, row, options=PreferenceOptions(scored=True))
    assert "zulu" in made.decode(store[0].prompt)
    assert list(audit.files[0].unread) == ["message.note"]
    assert audit.files[0].control.count == 1


def test_a_mark_about_training_is_none_about_scores(tmp_path: Path) -> None:
    no = {"weight": 0}
    rows: list[dict[str, Any]] = [
        {"messages": [ASK, SAY, MORE, {**LAST, **no}]},
        {"messages": [ASK, {**SAY, **no}], "train": False},
        {"prompt": [ASK], "completion": [{**SAY, **no}], "weight": 0},
        {"prompt": [ASK], "chosen": [{**SAY, **no}], "rejected": [{**LAST, **no}], "weight": 0},
        {"prompt": [ASK], "responses": [{"content": [{**SAY, **no}]}, {"content": [{**LAST, **no}]}]},
    ]
    made = tiny.tokenizer()
    for row in rows:
        plain = json.loads(json.dumps(row).replace(', "weight": 0', ""))
        store, audit = build(tmp_path, made, row, options=ScoreOptions(512))
        assert (len(store), audit.total.dropped_count) == (1, 0), row
        expected, _ = build(tmp_path, made, plain, options=ScoreOptions(512))
        assert store[0].prompt.tolist() == expected[0].prompt.tolist()
        texts = [[response.tokens.tolist() for response in each[0].responses] for each in (store, expected)]
        assert texts[0] == texts[1]
