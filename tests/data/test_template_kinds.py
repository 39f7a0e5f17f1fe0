"""Templates that play one trick each, and what is trained under them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.modules.prompts import PromptOptions
from lit_posttrain.data.render.clock import at_one_moment
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.inference.score import ScoreOptions
from lit_posttrain.rollout.text import prompt_ids
from lit_posttrain.template_variables import RESERVED

ASK, MORE = {"role": "user", "content": "the colour"}, {"role": "user", "content": "and the dog"}
SAY, LAST = {"role": "assistant", "content": "a fox"}, {"role": "assistant", "content": "it is lazy"}
TALK = [ASK, SAY, MORE, LAST]
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
ZULU = {"type": "function", "function": {"name": "zulu", "parameters": {}}}
OPENS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def tokenizer(template: str, *special: str) -> PreTrainedTokenizerFast:
    made = tiny.tokenizer(template)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def build(tmp_path: Path, made: Any, *rows: Any, options: Any = None) -> tuple[TreeStore, AuditReport]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_store([str(path)], made, options or TokenizeOptions(), str(tmp_path / "cache"))


def trained(made: Any, store: TreeStore) -> list[str]:
    return [made.decode(r.tokens[r.loss_mask]) for i in range(len(store)) for r in store[i].responses]


def given(made: Any, messages: list[dict[str, Any]], **variables: Any) -> list[int]:
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    return list(made(text, add_special_tokens=False)["input_ids"])


# ------------------------------------------------------------------------------------------- generation prompts

ALWAYS = HEAD + "{{ m.content + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
ALWAYS_IN_A_BLOCK = (
    "{% for m in messages %}{{ '<|head|>' + m.role + '<|text|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{{ '<|head|>assistant<|text|>' }}"
)


@pytest.mark.parametrize("template", [ALWAYS, ALWAYS_IN_A_BLOCK, ALWAYS.replace("<|im_end|>\n", "<|im_end|>")])
def test_a_prompt_that_is_always_written_is_no_part_of_the_answer(tmp_path: Path, template: str) -> None:
    made = tokenizer(template, "<|head|>", "<|text|>")
    store, audit = build(tmp_path, made, {"messages": TALK}, {"messages": [ASK, SAY]})
    assert trained(made, store) == ["a fox<|im_end|>it is lazy<|im_end|>", "a fox<|im_end|>"]
    assert audit.ends == {"<|im_end|>": 3}
    assert store[1].prompt.tolist() == given(made, [ASK])


@pytest.mark.parametrize("turn", ["<|{}|>", "<|{}|>\n", "[|{}|]", "<{}>"])
def test_a_prompt_that_is_always_written_in_one_token(tmp_path: Path, turn: str) -> None:
    name = turn.replace("{}", "' + m.role + '").replace("\n", "\\n")
    template = (
        f"{{% for m in messages %}}{{{{ '{name}' + m.content }}}}{{% endfor %}}{{{{ {turn.format('assistant')!r} }}}}"
    )
    user = turn.format("user").strip()
    made = tokenizer(template, user, turn.format("assistant").strip())
    store, audit = build(tmp_path, made, {"messages": TALK}, {"messages": [ASK, SAY]})
    assert trained(made, store) == [f"a fox{user}it is lazy{user}", f"a fox{user}"]
    assert audit.ends == {user: 3}
    assert store[1].prompt.tolist() == given(made, [ASK])


MARKED_HEAD = HEAD.replace("m.role + '\n'", "m.role + '\n' if m.role == 'user' else '<|im_start|>'")
# the marks hold the whole prompt of generation, a part of it, or less than generation has to write
MARKS = {
    "all": "{% generation %}{{ 'assistant\n' + m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
    "words": "{{ 'assistant\n' }}{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}",
    "right": "{{ 'assistant\n' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
}


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
def test_marks_hold_what_generation_writes(tmp_path: Path, marks: str) -> None:
    made = tokenizer(
        MARKED_HEAD
        + "{% if m.role == 'assistant' %}"
        + marks
        + "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        + OPENS
    )
    store, _ = build(tmp_path, made, {"messages": TALK})
    assert trained(made, store) == ["a fox<|im_end|>it is lazy<|im_end|>"]
    assert store[0].prompt.tolist() == given(made, [ASK])


def test_a_marked_header_that_use_does_not_give_is_trained(tmp_path: Path) -> None:
    template = HEAD + (
        "{% if m.role == 'assistant' %}{{ 'final:' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}" + OPENS
    )
    made = tokenizer(template)
    store, _ = build(tmp_path, made, {"messages": [ASK, SAY]})
    assert trained(made, store) == ["final:a fox<|im_end|>"]
    assert store[0].prompt.tolist() == given(made, [ASK])


# a thought that the prompt opens or closes -> what is trained without and with a thought; None: refused
THOUGHTS = {
    "opened, and closed by an empty turn": ("<think>\n", "<think></think>", "</think>a fox", "hm\n</think>a fox"),
    "opened, never closed": ("<think>\n", "", "\n</think>\n\na fox", "hm\n</think>\n\na fox"),
    "closed": ("<think></think>", "</think>", "a fox", "a fox"),
    "an empty channel": ("<|channel>thought\n<channel|>", "", "a fox", "a fox"),
    "white space in one token": (
        "<think>\n",
        "<think>\n\n</think>\n\n",
        "\n</think>\n\na fox",
        "hm\n</think>\n\na fox",
    ),
}


@pytest.mark.parametrize(("prompt", "turn", "plain", "thinking"), THOUGHTS.values(), ids=THOUGHTS)
@pytest.mark.parametrize("road", ["sft", "pairs"])
def test_turns_are_trained_as_generated(
    tmp_path: Path, road: str, prompt: str, turn: str, plain: str, thinking: str
) -> None:
    template = (
        HEAD
        + f"{{{{ ({turn!r} if m.role == 'assistant' else '') + m.content + '<|im_end|>\n' }}}}{{% endfor %}}"
        + OPENS.replace("assistant\n'", f"assistant\n' + {prompt!r}")
    )
    made = tokenizer(template, "<|channel>", "<channel|>")
    if "\n\n" in turn:
        made.add_tokens(["\n\n"])
    thought = {**SAY, "reasoning_content": "hm"}
    rows: list[Any] = [{"messages": TALK}, {"messages": [ASK, thought]}]
    options: Any = TokenizeOptions()
    if road == "pairs":
        rows = [{"prompt": TALK[:3], "chosen": [LAST], "rejected": [SAY]}]
        rows += [{"prompt": [ASK], "chosen": [thought], "rejected": [LAST]}]
        options = PreferenceOptions()
    store, audit = build(tmp_path, made, *rows, options=options)
    last = plain.replace("a fox", "it is lazy")
    expected = [plain, last, thinking] if road == "sft" else [last, plain, thinking, last]
    assert trained(made, store) == [text + "<|im_end|>" for text in expected]
    asked = [TALK[:1], TALK[:3], [ASK]] if road == "sft" else [TALK[:3], [ASK]]
    assert [store[i].prompt.tolist() for i in range(len(store))] == [given(made, messages) for messages in asked]
    assert [prompt_ids(made, messages) for messages in asked] == [given(made, messages) for messages in asked]
    prompts, _ = build(tmp_path, made, *({"prompt": m} for m in asked), options=PromptOptions())
    assert [prompts[i].prompt.tolist() for i in range(len(prompts))] == [given(made, messages) for messages in asked]
    generated = audit.files[0].generated.count
    assert generated == (int(thinking != plain) if turn.startswith(prompt) else 2)
    assert any("trained as generated" in line for line in audit.warnings) == bool(generated)
    if thinking == plain:
        assert any("leaves out the thoughts of 1 row " in line or "no place for" in line for line in audit.warnings)


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


SWITCH = (
    HEAD + "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)


def test_what_reward_models_read_counts_as_used(tmp_path: Path) -> None:
    made = tokenizer("{% if tools %}{{ tools | tojson }}{% endif %}" + SWITCH, "<|x|>")
    thinks = {**SAY, "reasoning_content": "hm"}
    row = {"prompt": [ASK], "tools": [ZULU], "chosen": [{**thinks, "note": 1}], "rejected": [{**LAST, **thinks}]}
    row["rejected"][0]["content"] = "no <|x|>"
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


def test_what_cannot_be_joined_names_what_makes_it_fit(tmp_path: Path) -> None:
    thinks = {"messages": [ASK, {**SAY, "reasoning_content": "hm"}]}
    fits = "both agree with --model.policy.template_variables '{enable_thinking: true}'"
    with pytest.raises(PostTrainError, match="renders the prompt as") as error:
        build(tmp_path, tokenizer(SWITCH), {"messages": TALK}, thinks)
    assert fits in str(error.value)
    assert str(error.value).count("rows.jsonl:2") == 1
    # such a row is one that may be skipped, and one that may bring the variable itself
    store, audit = build(
        tmp_path, tokenizer(SWITCH), {"messages": TALK}, thinks, options=TokenizeOptions(on_bad_row="skip")
    )
    assert audit.files[0].dropped["prompt differs"].lines == [2]
    assert len(store) == 2
    assert any(fits in line for line in audit.warnings)
    made = tokenizer(SWITCH)
    store, audit = build(tmp_path, made, {**thinks, "chat_template_kwargs": {"enable_thinking": True}})
    assert trained(made, store) == ["<think>hm</think>a fox<|im_end|>"]
    assert store[0].prompt.tolist() == given(made, [ASK], enable_thinking=True)
    assert audit.files[0].generated.count == 0


def test_a_remedy_is_named_for_rows_that_it_mends_alone(tmp_path: Path) -> None:
    thinks = {"messages": [ASK, {**SAY, "reasoning_content": "hm"}]}
    # the second row says itself what the first lacks, and still does not fit
    other = {**thinks, "chat_template_kwargs": {"enable_thinking": False}}
    made = tokenizer(SWITCH)
    for order in ([thinks, other], [other, thinks]):
        _, audit = build(tmp_path, made, {"messages": TALK}, *order, options=TokenizeOptions(on_bad_row="skip"))
        assert audit.files[0].dropped["prompt differs"].lines == [2, 3]
    template = ConversationTemplate(made)
    with pytest.raises(BadRow, match="both agree with"):
        template.render(Example(thinks["messages"], 1))
    with pytest.raises(BadRow, match="name a corrected template"):
        template.render(Example(thinks["messages"], 1, variables={"enable_thinking": False}))


MOVES = (
    "{% for m in messages %}{% if loop.last and m.role == 'user' and tools %}"
    "{{ '[TOOLS]' + tools[0].function.name }}{% endif %}"
    "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content + '<|im_end|>' }}{% endfor %}"
)


def test_what_stands_elsewhere_once_an_answer_follows(tmp_path: Path) -> None:
    made = tokenizer(MOVES)
    row = {"messages": [*TALK, ASK, {"role": "assistant", "content": "the end"}], "tools": [ZULU]}
    store, _ = build(tmp_path, made, row, options=TokenizeOptions(train_on="last"))
    text = made.apply_chat_template(row["messages"][:-1], tools=[ZULU], tokenize=False, add_generation_prompt=True)
    assert "[TOOLS]zulu[INST] the colour [/INST]" in text
    assert made.decode(store[0].prompt) == text
    assert trained(made, store) == ["the end<|im_end|>"]


# ------------------------------------------------------------------------------------------- ends

ROLES = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CLOSED_LATER = (
    "{% for m in messages %}{% if m.role == 'user' %}{% if not loop.first %}{{ '<|done|>' }}{% endif %}{{ '<|user|>' }}"
    "{% else %}{{ '<|assistant|>' }}{% endif %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize(("template", "end"), [(ROLES, "<|user|>"), (CLOSED_LATER, "<|done|>")])
def test_a_token_behind_a_turn_is_its_end(tmp_path: Path, template: str, end: str) -> None:
    made = tokenizer(template, "<|user|>", "<|assistant|>", "<|done|>")
    store, audit = build(tmp_path, made, {"messages": TALK}, {"messages": [ASK, SAY]})
    assert trained(made, store) == [f"a fox{end}it is lazy{end}", f"a fox{end}"]
    assert audit.ends == {end: 3}
    assert not any("learn to stop" in line for line in audit.warnings)


def test_a_token_before_every_turn_is_no_end(tmp_path: Path) -> None:
    template = ROLES.replace("'<|' + m.role + '|>'", "'<|turn|>' + m.role + ':'")
    made = tokenizer(template.replace("<|assistant|>", "<|turn|>assistant:"), "<|turn|>")
    store, audit = build(tmp_path, made, {"messages": TALK})
    assert trained(made, store) == ["a foxit is lazy"]
    assert audit.ends == {"": 2}


# ------------------------------------------------------------------------------------------- clocks and spellings


CLOCKS = {
    "a call": "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') + '\n' }}",
    "in a macro": "{% macro day() %}{{ strftime_now(format='%Y %f') }}{% endmacro %}{{ day() ~ '\n' }}",
    "if it is there": (
        "  {% if strftime_now is defined %}{% set now = strftime_now('%Y.%f') %}{% endif %}{{ now + '\n' }}"
    ),
    "in pieces": "\n{% for part in [1] %}{{- strftime_now('%Y-' ~ '%f').split('-')[part - 1] + '\n' }}{% endfor %}",
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_stopped_clock_changes_nothing_else(clock: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for template in (CLOCKS[clock] + tiny.CHATML, "\n \n" + CLOCKS[clock] + tiny.CHATML):
        steady = template.replace("%f", "%m")
        (plain,), _ = render_jinja_template([TALK], chat_template=steady)
        now = datetime.now()
        assert render_jinja_template([TALK], chat_template=at_one_moment(steady, now))[0] == [plain]
        if clock != "in pieces":
            ((one,), (other,)) = (
                render_jinja_template([TALK], chat_template=at_one_moment(template, now))[0] for _ in range(2)
            )
            assert one == other


def test_a_template_that_writes_the_time_is_rendered_at_one_moment(tmp_path: Path) -> None:
    made = tokenizer(CLOCKS["a call"] + tiny.CHATML)
    store, audit = build(tmp_path, made, *({"messages": TALK} for _ in range(50)))
    assert len({store[i].prompt.tobytes() for i in range(50)}) == 1
    assert audit.dated_template[:2] == "20"
    assert any(f"writes the date of tokenisation ({audit.dated_template})" in line for line in audit.warnings)


@pytest.mark.parametrize("dated", ["default", "tool_use"])
def test_the_date_in_one_of_several_templates_is_named_where_it_is_used(tmp_path: Path, dated: str) -> None:
    made = tokenizer(tiny.CHATML)
    date = "{{ strftime_now('%Y-%m-%d') + '\n' }}" + tiny.CHATML
    made.chat_template = {"default": tiny.CHATML, "tool_use": tiny.CHATML} | {dated: date}
    _, audit = build(tmp_path, made, {"messages": TALK})
    assert bool(audit.dated_template) == (dated == "default")
    _, audit = build(tmp_path, made, {"messages": TALK, "tools": [ZULU]})
    assert bool(audit.dated_template) == (dated == "tool_use")


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


# ------------------------------------------------------------------------------------------- work


@pytest.mark.parametrize(("template", "a_turn"), [(tiny.CHATML, 2), (ROLES, 4), (ALWAYS, 5)])
def test_a_turn_is_rendered_no_more_often_than_is_needed(
    monkeypatch: pytest.MonkeyPatch, template: str, a_turn: int
) -> None:
    made = tokenizer(template, "<|user|>", "<|assistant|>")
    made.eos_token = "<|pad|>"  # nothing that ends a turn
    renderer = ConversationTemplate(made)
    messages = [message for turn in range(10) for message in ({**ASK, "content": f"{turn}"}, SAY)]
    renderer.render(Example(messages, 1))  # which tries out the template
    rendered: list[str] = []
    render = chat_template_utils.render_jinja_template

    def counted(*args: Any, **kwargs: Any) -> Any:
        found = render(*args, **kwargs)
        rendered.extend(found[0])
        return found

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", counted)
    renderer.render(Example(messages, 1))
    assert len(rendered) <= 10 * a_turn + 2


def test_texts_are_kept_for_one_row_only() -> None:
    renderer, messages = ConversationTemplate(tiny.tokenizer()), [dict(ASK), dict(SAY)]
    for word in ("a fox", "a dog"):
        messages[1]["content"] = word
        (rendered,) = renderer.render(Example(messages, 1))
        assert word in rendered.text
