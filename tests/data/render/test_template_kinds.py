"""Templates that play one trick each, and what is trained under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.templates import (
    ASK,
    HEAD,
    LAST,
    OPENS,
    SAY,
    SWITCH,
    TALK,
    THOUGHTS,
    ZULU,
    build,
    given,
    tokenizer,
    trained,
)
from transformers.utils import chat_template_utils

from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.modules.prompts import PromptOptions
from lit_posttrain.data.render.templates import ConversationTemplate
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.store.build import TokenizeOptions
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.text import prompt_ids

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
    row: dict[str, Any] = {"messages": [*TALK, ASK, {"role": "assistant", "content": "the end"}], "tools": [ZULU]}
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
