"""Templates that want conversations in a form of their own, or leave a part of them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.templates import ASK, HEAD, LAST, MORE, OPENS, SAY, TALK, ZULU, build, tokenizer, trained

from lit_posttrain.data.modules.prompts import PromptOptions
from lit_posttrain.data.store.build import TokenizeOptions
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.text import prompt_ids
from lit_posttrain.template_variables import RESERVED


def test_several_templates_without_a_default_are_one_line(tmp_path: Path) -> None:
    made = tokenizer(tiny.CHATML)
    made.chat_template = {"rag": tiny.CHATML, "tool_use": tiny.CHATML}
    with pytest.raises(PostTrainError, match="templates named rag, tool_use, and none named default"):
        build(tmp_path, made, {"messages": TALK})
    with pytest.raises(PostTrainError, match="templates named rag, tool_use, and none named default"):
        prompt_ids(made, [ASK])
    store, _ = build(tmp_path, made, {"messages": TALK, "tools": [ZULU]})
    assert len(store) == 1


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_what_is_no_variable_of_a_template_is_refused(tmp_path: Path, name: str) -> None:
    made = tokenizer(tiny.CHATML)
    for variables in ({name: True}, json.dumps({name: None})):
        row = {"messages": TALK, "chat_template_kwargs": variables}
        with pytest.raises(PostTrainError, match=rf"rows\.jsonl:1: .*: {name} is no variable of a template"):
            build(tmp_path, made, row)


PARTS = HEAD + "{% for part in m.content %}{{ part.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}" + OPENS
REFUSAL = "{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}"
REFUSES_TEXT = PARTS.replace("{% for part", REFUSAL + "{% for part")


@pytest.mark.parametrize("template", [PARTS, REFUSES_TEXT])
def test_content_is_a_list_of_parts_where_a_template_wants_that(tmp_path: Path, template: str) -> None:
    made = tokenizer(template)
    store, audit = build(tmp_path, made, {"messages": TALK})
    assert trained(made, store) == ["a fox<|im_end|>it is lazy<|im_end|>"]
    assert made.decode(prompt_ids(made, [ASK])) == "<|im_start|>user\nthe colour<|im_end|>\n<|im_start|>assistant\n"
    assert audit.total.altered.count == 0


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("wanted", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_stands_under_the_key_that_the_template_reads(tmp_path: Path, key: str, wanted: str) -> None:
    made = tokenizer(HEAD + f"{{{{ (m.{wanted} or '') + m.content + '<|im_end|>\n' }}}}{{% endfor %}}" + OPENS)
    store, audit = build(tmp_path, made, {"messages": [ASK, {**SAY, key: "hm "}]})
    assert trained(made, store) == ["hm a fox<|im_end|>"]
    assert not audit.files[0].unread


# ------------------------------------------------------------------------------------------- what is left out

CALLS = [
    {"type": "function", "function": {"name": name, "arguments": {"river": river}}}
    for name, river in (("level", "Meuse"), ("level", "Rhine"))
]
ONE_CALL = (
    HEAD + "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + OPENS
)


def test_a_call_that_is_left_out_is_no_row_to_train_on(tmp_path: Path) -> None:
    row = {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": CALLS}]}
    with pytest.raises(PostTrainError, match="leaves out 1 of 2 tool calls of turn 2"):
        build(tmp_path, tokenizer(ONE_CALL), row)
    other = {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": CALLS[:1]}]}
    store, audit = build(tmp_path, tokenizer(ONE_CALL), row, other, options=TokenizeOptions(on_bad_row="skip"))
    assert (len(store), audit.files[0].dropped["not rendered"].lines) == (1, [1])


def test_a_call_that_is_left_out_of_an_earlier_turn_is_counted(tmp_path: Path) -> None:
    row = {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": CALLS}, MORE, LAST]}
    store, audit = build(tmp_path, tokenizer(ONE_CALL), row, options=TokenizeOptions(train_on="last"))
    assert len(store) == 1
    assert audit.files[0].lost["tool calls of earlier turns"].lines == [1]
    assert any("leaves out the tool calls of earlier turns of 1 row " in line for line in audit.warnings)


def test_tools_that_some_rows_lose_are_counted(tmp_path: Path) -> None:
    template = "{% if tools and messages[0].role == 'system' %}{{ tools | tojson }}{% endif %}" + tiny.CHATML
    system = {"role": "system", "content": "hello"}
    rows = [{"messages": [system, ASK, SAY], "tools": [ZULU]}, {"messages": [ASK, SAY], "tools": [ZULU]}]
    _, audit = build(tmp_path, tokenizer(template), *rows)
    assert audit.files[0].lost["tools"].lines == [2]


AS_JSON = (
    HEAD + "{{ m.content }}{% for call in m.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + OPENS
)


@pytest.mark.parametrize("given", [{}, {"arguments": None}, {"arguments": ""}, {"arguments": "null"}])
def test_a_call_without_arguments_leaves_the_rows_behind_it_alone(tmp_path: Path, given: dict[str, Any]) -> None:
    bare = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_time", **given}}]}
    full = {"role": "assistant", "content": "", "tool_calls": CALLS[:1]}
    made = tokenizer(AS_JSON.replace("{{ call", "{{ call.function.name }}{{ call"))
    store, _ = build(tmp_path, made, {"messages": [ASK, bare]}, {"messages": [ASK, full]})
    assert trained(made, store) == ["get_time{}<|im_end|>", 'level{"river": "Meuse"}<|im_end|>']


# ------------------------------------------------------------------------------------------- what is refused

KNOWN_NAMES = (
    "{% for c in m.tool_calls or [] %}{% if c.function.name not in tools | map(attribute='function.name') | list %}"
    "{{ raise_exception('unknown tool ' + c.function.name) }}{% endif %}"
    "{{ '<call>' + c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
)
KNOWN_ANSWERS = (
    "{% if m.role == 'assistant' and m.content not in ['', 'Yes', 'No'] %}"
    "{{ raise_exception('say Yes or No') }}{% endif %}"
)
CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "zulu", "arguments": {"river": "Meuse"}}}],
}
YES = {"role": "assistant", "content": "Yes"}


@pytest.mark.parametrize("opens", [OPENS, OPENS.replace("assistant\n", "assistant\n<think>\n")])
@pytest.mark.parametrize("options", [TokenizeOptions(), TokenizeOptions(train_on="last"), PromptOptions()])
def test_templates_that_take_only_what_they_know(tmp_path: Path, options: Any, opens: str) -> None:
    template = HEAD + KNOWN_ANSWERS + "{{ m.content }}" + KNOWN_NAMES + "{{ '<|im_end|>\n' }}{% endfor %}" + opens
    made = tokenizer(template)
    talk = [ASK, CALLING, {"role": "tool", "content": "3"}, YES]
    rows = [{"prompt": talk[:3]}] if isinstance(options, PromptOptions) else [{"messages": talk}]
    store, audit = build(tmp_path, made, {**rows[0], "tools": [ZULU]}, options=options)
    shut = "\n</think>\n\n" if "<think>" in opens else ""  # a thought that the prompt opens
    calls = '<call>zulu{"river": "Meuse"}<|im_end|>'
    if not isinstance(options, PromptOptions):
        said = [text for text in trained(made, store) if text]
        assert "".join(said) == ("" if options.train_on == "last" else shut + calls) + shut + "Yes<|im_end|>"
    assert calls in made.decode(store[0].prompt) or isinstance(options, TokenizeOptions)
    assert not {"tool results", "words of earlier turns", "tool calls of earlier turns"} & set(audit.files[0].lost)
    # what it does not know it still refuses, and what it drops is still said
    with pytest.raises(PostTrainError, match=r"\(say Yes or No\)"):
        build(tmp_path, made, {"messages": [ASK, SAY]})
    drops = tokenizer(template.replace("+ (c.function.arguments | tojson)", "").replace("m.content }}", "'' }}"))
    if options == TokenizeOptions() and opens == OPENS:
        with pytest.raises(PostTrainError, match="leaves out the tool calls of turn 2"):
            build(tmp_path, drops, {"messages": talk, "tools": [ZULU]})


@pytest.mark.parametrize("case", ["upper", "lower", "capitalize", "title"])
def test_a_template_that_changes_the_case_leaves_nothing_out(tmp_path: Path, case: str) -> None:
    template = HEAD + f"{{{{ m.content | {case} }}}}{{{{ '<|im_end|>\n' }}}}{{% endfor %}}" + OPENS
    made = tokenizer(template)
    store, audit = build(tmp_path, made, {"messages": TALK}, options=TokenizeOptions(train_on="last"))
    assert [text.lower() for text in trained(made, store)] == ["it is lazy<|im_end|>"]
    assert not audit.files[0].lost


def test_a_refusal_is_told_in_the_words_of_the_template(tmp_path: Path) -> None:
    # text breaks it, and parts it refuses by itself
    template = (
        "{% for m in messages %}{{ m.content[0].text + '' }}{% if m.role not in ['user', 'assistant'] %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}" + OPENS
    )
    tool = {"role": "tool", "content": "3"}
    with pytest.raises(PostTrainError, match=r"\(Only user and assistant roles are supported!\)"):
        build(tmp_path, tokenizer(template), {"messages": [ASK, SAY, tool, LAST]})
