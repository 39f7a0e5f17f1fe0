"""Thoughts, calls and tool results that templates drop, in templates of the shapes that model families have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.templates import ASK, HEAD, LAST, MORE, OPENS, SAY, build, given, tokenizer, trained

from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.modules.prompts import PromptOptions
from lit_posttrain.data.store.build import TokenizeOptions
from lit_posttrain.errors import PostTrainError

LAST_ONLY = TokenizeOptions(train_on="last")


def says(content: str, *calls: tuple[str, Any], **more: Any) -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    return {"role": "assistant", "content": content, **({"tool_calls": made} if made else {}), **more}


# ------------------------------------------------------------------------------------------- thoughts

# shapes of prompts and answers; `content` is what the template keeps of the message
DROPS = "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
)
R1 = (
    "{% for m in messages %}"
    + DROPS
    + "{{ '<|User|>' + content if m.role == 'user' else '<|Assistant|>' + content }}"
    + CALLS
    + "{{ '<|end_of_sentence|>' if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
# both modes in one template: the turn closes what the prompt of the thinking mode opens
V31 = R1.replace("'<|Assistant|>' + content", "'<|Assistant|></think>' + content").replace(
    "<think>\n'", "' + ('<think>' if thinking else '</think>')"
)
EXAONE = (
    "{% for m in messages %}{{ '[|' + m.role + '|]' + m.content.split('</thought>')[-1].lstrip('\n') }}"
    "{{ '[|endofturn|]' }}{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]<thought>\n' }}{% endif %}"
)
# prompt and answer agree here, but the thought is lost
EMPTY = (
    HEAD
    + DROPS
    + "{{ ('<think>\n\n</think>\n\n' if m.role == 'assistant' else '') + content + '<|im_end|>\n' }}{% endfor %}"
    + OPENS.replace("assistant\n", "assistant\n<think>\n")
)
THINKING = {"chat_template_kwargs": {"thinking": True}}
SHAPES = {
    "R1": (R1, {}, "hm\n</think>\n\na fox<|end_of_sentence|>"),
    "V3.1": (V31, THINKING, "hm</think>a fox<|end_of_sentence|>"),
    "EXAONE": (EXAONE, {}, "hm\n</thought>\n\na fox[|endofturn|]"),
    "EMPTY": (EMPTY, {}, "hm\n</think>\n\na fox<|im_end|>"),
}
SPECIAL = ("<|User|>", "<|Assistant|>", "<|end_of_sentence|>", "[|endofturn|]", "[|assistant|]", "[|user|]")


@pytest.mark.parametrize("where", ["a key", "the content", "the content, without its opening"])
@pytest.mark.parametrize(("template", "more", "expected"), SHAPES.values(), ids=SHAPES)
def test_a_thought_that_the_prompt_opens_is_trained(
    tmp_path: Path, template: str, more: dict[str, Any], expected: str, where: str
) -> None:
    tag = "thought" if "<thought>" in template else "think"
    opening = f"<{tag}>\n" if "without" not in where else ""
    content = f"{opening}hm\n</{tag}>\n\na fox"
    message = {**SAY, "reasoning_content": "hm"} if where == "a key" else {**SAY, "content": content}
    made = tokenizer(template, *SPECIAL)
    store, audit = build(tmp_path, made, {"messages": [ASK, message], **more}, {"messages": [ASK, SAY], **more})
    assert trained(made, store)[0] == expected
    assert store[0].prompt.tolist() == given(made, [ASK], **more.get("chat_template_kwargs", {}))
    assert not audit.files[0].lost
    assert audit.files[0].altered.count == 0


# as it stands in the content -> what is trained of it behind a prompt that ends with "<think>\n"
EMPTY_THOUGHTS = {
    "<think>\n\n</think>\n\n": "\n</think>\n\n",
    "<think>\n</think>\n": "</think>\n",
    "<think></think>": "</think>",
    "\n</think>\n\n": "\n</think>\n\n",
    "</think>": "</think>",
}


@pytest.mark.parametrize("calls", [False, True], ids=["an answer", "a call"])
@pytest.mark.parametrize(("thought", "kept"), EMPTY_THOUGHTS.items())
@pytest.mark.parametrize(("template", "more", "thinks"), SHAPES.values(), ids=SHAPES)
def test_an_empty_thought_that_the_prompt_opens_is_closed(
    tmp_path: Path, template: str, more: dict[str, Any], thinks: str, thought: str, kept: str, calls: bool
) -> None:
    tag = "thought" if "<thought>" in template else "think"
    call = [("level", {"river": "Rhine"})] if calls and CALLS in template else []
    message = says(thought.replace("think", tag) + "a fox", *call)
    made = tokenizer(template, *SPECIAL)
    store, audit = build(tmp_path, made, {"messages": [ASK, message], **more})
    # two write the end of every thought themselves
    kept = {V31: "</think>", EMPTY: "\n</think>\n\n"}.get(template, kept.replace("think", tag))
    end = thinks.partition("a fox")[2]
    said = "a fox" + ('<call>level{"river": "Rhine"}' if call else "")
    assert trained(made, store) == [kept + said + end]
    assert store[0].prompt.tolist() == given(made, [ASK], **more.get("chat_template_kwargs", {}))
    assert not audit.files[0].lost


def test_a_speaker_in_a_tag_is_no_thought(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</' + m.role + '>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    made = tokenizer(template, "</assistant>")
    store, audit = build(tmp_path, made, {"messages": [ASK, {**SAY, "reasoning_content": "hm"}]})
    assert trained(made, store) == ["a fox</assistant>"]
    assert audit.files[0].unread["message.reasoning_content"].count == 1


@pytest.mark.parametrize("key", [False, True], ids=["content", "key"])
def test_a_thought_beside_a_call_is_trained_where_the_prompt_opens_one(tmp_path: Path, key: bool) -> None:
    call = ("level", {"river": "Rhine"})
    message = says("", call, reasoning_content="hm") if key else says("<think>\nhm\n</think>\n\n", call)
    made = tokenizer(R1, *SPECIAL)
    store, audit = build(tmp_path, made, {"messages": [ASK, message]})
    assert trained(made, store) == ['hm\n</think>\n\n<call>level{"river": "Rhine"}<|end_of_sentence|>']
    assert not audit.files[0].lost


KEEPS_NO_WORDS = (
    HEAD
    + "{% if m.tool_calls %}"
    + CALLS
    + "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    + OPENS
)


@pytest.mark.parametrize("thought", ["hm", "c", "call", "level"])
def test_a_thought_beside_a_call_is_not_lost_without_a_word(tmp_path: Path, thought: str) -> None:
    row = {"messages": [ASK, says(f"<think>\n{thought}\n</think>", ("level", {"river": "Rhine"}))]}
    made = tokenizer(KEEPS_NO_WORDS)
    store, audit = build(tmp_path, made, row)
    assert trained(made, store) == ['<call>level{"river": "Rhine"}<|im_end|>']
    assert audit.files[0].lost["thoughts"].lines == [1]


NO_THINKING = (
    HEAD + "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def test_no_thought_is_trained_behind_a_closed_one(tmp_path: Path) -> None:
    thinks = {"messages": [ASK, {**SAY, "content": "<think>\nhm\n</think>\n\na fox"}]}
    made = tokenizer(NO_THINKING)
    with pytest.raises(PostTrainError, match="enable_thinking: true"):
        build(tmp_path, made, thinks)
    store, _ = build(tmp_path, made, {**thinks, "chat_template_kwargs": {"enable_thinking": True}})
    assert trained(made, store) == ["<think>\nhm\n</think>\n\na fox<|im_end|>"]


# ------------------------------------------------------------------------------------------- ends

GLM = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>' + (m.reasoning_content or '' if loop.last else '') + '</think>' }}{% endif %}{{ m.content }}"
    + CALLS
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.mark.parametrize("turn", [0, 1], ids=["as it is", "the other way round"])
def test_the_end_of_a_turn_does_not_depend_on_the_rows_before(tmp_path: Path, turn: int) -> None:
    asked = {"role": "user", "content": "yes or no? yes, user"}
    rows = [
        {"messages": [asked, {"role": "assistant", "content": "yes", "reasoning_content": "yes, it is"}]},
        {"messages": [ASK, {**SAY, "reasoning_content": "hm"}]},
    ]
    made = tokenizer(GLM, "<|user|>", "<|assistant|>", "<|tool|>")
    store, audit = build(tmp_path, made, *(rows[::-1] if turn else rows))
    expected = ["<think>yes, it is</think>yes<|user|>", "<think>hm</think>a fox<|user|>"]
    assert trained(made, store) == (expected[::-1] if turn else expected)
    assert audit.ends == {"<|user|>": 2}


def test_the_end_of_a_call_is_the_tool_whatever_was_before(tmp_path: Path) -> None:
    call = says("", ("level", {}), reasoning_content="hm")
    result = {"role": "tool", "content": "3"}
    made = tokenizer(GLM, "<|user|>", "<|assistant|>", "<|tool|>")
    # a tool's turn behind an answer without calls
    rows = [{"messages": [ASK, SAY, result, LAST]}, {"messages": [ASK, call, result, LAST]}]
    store, _ = build(tmp_path, made, *rows)
    assert [text.replace("<think></think>", "") for text in trained(made, store)][-2:] == [
        "<think>hm</think><call>level{}<|tool|>",
        "it is lazy<|user|>",
    ]


# ------------------------------------------------------------------------------------------- calls

ONE_CALL = (
    HEAD + "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}" + OPENS
)
NO_CALLS = tiny.CHATML
# the lost call's name and arguments stand elsewhere in the turn, are no single words, or are no text at all
LOST = {
    "name in the words": (ONE_CALL, says("level, level", ("level", {"at": "Rhine"}), ("level", {"at": "Meuse"}))),
    "name in an argument": (ONE_CALL, says("", ("find", {"what": "level"}), ("level", {}))),
    "several words": (ONE_CALL, says("find find", ("find", {"what": "a b"}), ("find", {"what": "an old boat"}))),
    "numbers": (ONE_CALL, says("find find", ("find", {"what": 1}), ("find", {"what": 2}))),
    "nested": (ONE_CALL, says("find find", ("find", {"a": {"b": ["x y"]}}), ("find", {"a": {"b": ["v w"]}}))),
    "the same twice": (ONE_CALL, says("", ("find", {"what": "a"}), ("find", {"what": "a"}))),
    "a part of a word": (ONE_CALL, says("", ("finder", {}), ("find", {}))),
    "all, named in the words": (NO_CALLS, says("I call level now.", ("level", {"river": "now"}))),
    "all, named in the thought": (NO_CALLS, says("ok", ("o", {"river": "k"}))),
}


@pytest.mark.parametrize(("template", "message"), LOST.values(), ids=LOST)
def test_a_lost_call_is_seen_whatever_else_stands_in_the_turn(
    tmp_path: Path, template: str, message: dict[str, Any]
) -> None:
    with pytest.raises(PostTrainError, match=r"leaves out .* tool calls of turn 2"):
        build(tmp_path, tokenizer(template), {"messages": [ASK, message]})


WRITTEN = {
    "quotes and line breaks": {"text": 'a "quoted"\nline \\ and C:\\new', "more": [1, 2.50, True, None, {"x": "é"}]},
    "nothing": {},
    "empty": {"text": "", "list": []},
}


@pytest.mark.parametrize("arguments", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("quote", ["| tojson", "| tojson | tojson", "| string"])
def test_calls_that_are_written_are_no_loss(tmp_path: Path, arguments: dict[str, Any], quote: str) -> None:
    made = tokenizer(KEEPS_NO_WORDS.replace("| tojson", quote))
    store, audit = build(tmp_path, made, {"messages": [ASK, says("", ("find", arguments), ("find", arguments))]})
    assert len(store) == 1
    assert not audit.files[0].lost


# ------------------------------------------------------------------------------------------- what is shown

NO_RESULTS = (
    "{% for m in messages %}{% if m.role != 'tool' %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    + CALLS
    + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + OPENS
)
TOOL = {"role": "tool", "content": "the fox"}
CALLED = [ASK, says("", ("level", {"river": "Rhine"})), TOOL, LAST]


@pytest.mark.parametrize("road", ["sft", "pairs", "prompts"])
@pytest.mark.parametrize("result", ["the fox", "u", '{"metres": 3}'])
def test_tool_results_that_the_template_drops_are_counted(tmp_path: Path, road: str, result: str) -> None:
    talk = [*CALLED[:2], {**TOOL, "content": result}, LAST]
    row: dict[str, Any] = {"messages": talk}
    options: Any = TokenizeOptions()
    if road == "pairs":
        row, options = {"prompt": talk[:3], "chosen": [LAST], "rejected": [SAY]}, PreferenceOptions()
    if road == "prompts":
        row, options = {"prompt": talk[:3]}, PromptOptions()
    _, audit = build(tmp_path, tokenizer(NO_RESULTS), row, options=options)
    assert audit.files[0].lost["tool results"].lines == [1]
    assert any("leaves out the tool results of 1 row " in line for line in audit.warnings)
    kept = tokenizer(NO_RESULTS.replace("m.role != 'tool'", "true"))
    _, audit = build(tmp_path, kept, row, options=options)
    assert not audit.files[0].lost


@pytest.mark.parametrize("content", ["I will look.", "a"])
def test_words_of_an_earlier_turn_that_the_template_drops_are_counted(tmp_path: Path, content: str) -> None:
    talk = [ASK, says(content, ("level", {"river": "Rhine"})), TOOL, LAST]
    _, audit = build(tmp_path, tokenizer(KEEPS_NO_WORDS), {"messages": talk}, options=LAST_ONLY)
    assert audit.files[0].lost["words of earlier turns"].lines == [1]
    _, audit = build(tmp_path, tokenizer(KEEPS_NO_WORDS), {"messages": [ASK, SAY, MORE, LAST]}, options=LAST_ONLY)
    assert not audit.files[0].lost


def test_words_that_the_prompt_of_the_trained_turn_shows_are_not_left_out(tmp_path: Path) -> None:
    # once an answer follows, the template drops what was said before the call, as gpt-oss does
    drops = "{% if not m.tool_calls or messages[-1].role == 'tool' %}{{ m.content }}{% endif %}"
    made = tokenizer(HEAD + drops + CALLS + "{{ '<|im_end|>\n' }}{% endfor %}" + OPENS)
    talk = [ASK, says("I will look.", ("level", {"river": "Rhine"})), TOOL, LAST]
    store, audit = build(tmp_path, made, {"messages": talk}, options=LAST_ONLY)
    assert store[0].prompt.tolist() == given(made, talk[:3])
    assert "I will look." in made.decode(store[0].prompt)
    assert not audit.files[0].lost
    # a whole conversation later it is dropped from the prompt as well
    _, audit = build(tmp_path, made, {"messages": [*talk, MORE, SAY]}, options=LAST_ONLY)
    assert audit.files[0].lost["words of earlier turns"].lines == [1]


def test_an_answer_that_is_continued_is_not_altered(tmp_path: Path) -> None:
    begun = {"role": "assistant", "content": "it is"}
    row = {"prompt": [ASK, begun], "chosen": " a fox", "rejected": " lazy"}
    store, audit = build(tmp_path, tokenizer(tiny.CHATML), row, options=PreferenceOptions())
    assert len(store) == 1
    assert audit.files[0].altered.count == 0


def test_a_template_for_parts_gets_them_for_words_that_it_writes_itself(tmp_path: Path) -> None:
    template = HEAD + "{% for part in m.content %}{{ part.text }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}" + OPENS
    made = tokenizer(template)
    store, _ = build(tmp_path, made, {"messages": [{"role": "user", "content": "a"}, {**SAY, "content": "i"}]})
    assert made.decode(store[0].prompt) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert trained(made, store) == ["i<|im_end|>"]


@pytest.mark.parametrize("name", ["zulu", "a", "assistant"])
def test_tools_that_the_template_drops_are_counted_whatever_the_words(tmp_path: Path, name: str) -> None:
    row = {"messages": [ASK, says("the zulu")], "tools": [{"type": "function", "function": {"name": name}}]}
    template = "{% if tools and messages[0].role == 'system' %}{{ tools | tojson }}{% endif %}" + tiny.CHATML
    system = {"messages": [{"role": "system", "content": "hello"}, *row["messages"]], "tools": row["tools"]}
    _, audit = build(tmp_path, tokenizer(template), system, row)
    assert audit.files[0].lost["tools"].lines == [2]
