"""Variables of the chat template: written into it so that every reader of it sees them, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.published import published
from transformers.utils.chat_template_utils import _compile_jinja_template

from lit_posttrain.data.render.rendering import Conversation, Renderer
from lit_posttrain.data.rows.beside import Beside
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import load_tokenizer
from lit_posttrain.template_variables import RESERVED, compared_with, only_asked, taken, with_variables

VALUES: dict[str, Any] = {
    "flag": True,
    "nothing": None,
    "text": 'x\n"q" 🪿 {{ }} %} é \\ \t',
    "items": [1, 2.5, {"k": False, "n": None}],
    "number": -3,
}
READS = (
    "{% if flag is defined and flag is true %}yes{% endif %}\n{{ nothing is none }}|{{ text }}|{{ items | tojson }}|"
    "{{ number }}{% macro m() %}{{ number }}{{ flag }}{% endmacro %}{{ m() }}"
)
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello", "reasoning_content": "hm"},
    {"role": "user", "content": "and?"},
]


def _spec(folder: Path, **more: Any) -> ModelSpec:
    return ModelSpec("a model of any kind", tokenizer=str(folder), **more)


@pytest.mark.parametrize(
    "first", ["", "\n", "\n\n", "  ", "   {% if flag %}x{% endif %}\n", "{%- if flag %}x{% endif %}"]
)
def test_a_template_with_values_renders_as_if_they_were_passed(first: str) -> None:
    template = first + READS
    set_within = _compile_jinja_template(with_variables(template, VALUES))
    assert set_within.render() == _compile_jinja_template(template).render(**VALUES)
    other = {**VALUES, "number": 7, "flag": False}
    assert set_within.render(number=7, flag=False) == _compile_jinja_template(template).render(**other)
    assert taken(template) == tuple(sorted(VALUES))


@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_published_templates_with_values_render_as_if_they_were_passed(path: Path) -> None:
    template = path.read_text(encoding="utf-8")
    talk = (
        [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TALK] if "['text']" in template else TALK
    )
    plain, changed = tiny.tokenizer(template), 0
    for name in taken(template):
        for value in (True, False, *compared_with(template, name)):
            within = tiny.tokenizer(with_variables(template, {name: value}))
            for prompt in (True, False):
                try:
                    expected = plain.apply_chat_template(
                        talk, tokenize=False, add_generation_prompt=prompt, **{name: value}
                    )
                except Exception:  # what it refuses so, it refuses
                    continue
                assert within.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt) == expected
                changed += expected != plain.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt)
    assert changed or "enable_thinking" not in taken(template)


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{% set effort = effort or 'medium' %}{{ effort }}", ("effort",)),
        ("{% if not effort %}{% set effort = 'low' %}{% endif %}{{ effort }}", ()),
        ("{% set effort = (effort if effort else 'low') | upper %}{{ effort }}", ("effort",)),
        ("{% set effort = 'low' %}{% set effort = effort or 'medium' %}{{ effort }}", ()),
        ("{% if messages %}{% set a = 1 %}{% endif %}{{ a }}", ()),
        ("{% for m in messages %}{% set text = m.content %}{% set text = text | trim %}{{ text }}{% endfor %}", ()),
    ],
)
def test_a_variable_that_is_read_where_it_is_set_may_be_given(template: str, names: tuple[str, ...]) -> None:
    assert taken(template) == names


def test_a_loaded_tokenizer_has_them(tmp_path: Path) -> None:
    tiny.tokenizer(
        tiny.CHATML + "{% if enable_thinking is defined and not enable_thinking %}off{% endif %}"
    ).save_pretrained(tmp_path)
    loaded = load_tokenizer(_spec(tmp_path, template_variables={"enable_thinking": False}))
    assert loaded.apply_chat_template(TALK, tokenize=False).endswith("off")
    assert not loaded.apply_chat_template(TALK, tokenize=False, enable_thinking=True).endswith("off")
    loaded.save_pretrained(tmp_path / "again")
    # what another program makes of the folder, and what a second run over it may set anew
    assert load_tokenizer(_spec(tmp_path / "again")).apply_chat_template(TALK, tokenize=False).endswith("off")
    anew = load_tokenizer(_spec(tmp_path / "again", template_variables={"enable_thinking": True}))
    assert not anew.apply_chat_template(TALK, tokenize=False).endswith("off")


@pytest.mark.parametrize("value", ["false", "False", 0, False])
def test_a_switch_written_as_text_is_what_it_says(tmp_path: Path, value: Any) -> None:
    template = tiny.CHATML + "{{ 'off' if enable_thinking is false else 'on' }}{{ 'a' if a else 'b' }}"
    tiny.tokenizer(template).save_pretrained(tmp_path)
    loaded = load_tokenizer(_spec(tmp_path, template_variables={"enable_thinking": value, "a": "false"}))
    assert loaded.apply_chat_template(TALK, tokenize=False).endswith("offb")


ONLY_ASKED = {
    "if": "{% if a %}on{% else %}off{% endif %}",
    "in a line": "{{ 'on' if a else 'off' }}",
    "not": "{% if not a %}off{% endif %}",
    "with others": "{% if (a or add_vision_id) and not tools %}on{% else %}off{% endif %}",
    "is true": "{% if a is defined and a is true %}on{% else %}off{% endif %}",
    "compared with true": "{{ 'off' if a == false else 'on' }}",
    "sameas": "{{ 'off' if a is sameas false else 'on' }}",
    "its default": "{% set a = a if a is defined else true %}{% if a %}on{% else %}off{% endif %}",
    "a default by a filter": "{% if a | default(true) %}on{% else %}off{% endif %}",
    "another name": "{% set b = a or x %}{% set c = b | d(false) %}{% if c %}on{% else %}off{% endif %}",
    "elif": "{% if x %}{% elif a %}on{% else %}off{% endif %}",
}
USED_AS_TEXT = {
    "printed": "{% if a %}{{ a }}{% endif %}",
    "by a filter": "{{ a | upper }}",
    "added": "{% if a %}{{ 'is ' + a }}{% endif %}",
    "joined": "{{ 'is ' ~ a }}",
    "compared": "{{ 'yes' if a == 'true' else 'no' }}",
    "compared without case": "{{ 'yes' if a | lower == 'false' else 'no' }}",
    "in a list": "{{ 'yes' if a in ['true', 'false'] else 'no' }}",
    "its default": "{{ a or 'none' }}",
    "another name": "{% set b = a if a else 'x' %}{% if a %}{{ b }}{% endif %}",
    "a method": "{% if a %}{{ a.strip() }}{% endif %}",
    "a test of its type": "{{ 'text' if a is string else 'other' }}",
    "a namespace": "{% set ns = namespace(b=a) %}{{ ns.b }}",
    "a macro": "{% macro m(v) %}{{ v }}{% endmacro %}{{ m(a) }}",
}


def _written(template: str, value: Any) -> set[str]:
    """What a template makes of a variable: of a model's option, and of a row's column."""
    row = {"messages": json.dumps(TALK), "chat_template_kwargs": json.dumps({"a": value})}
    around = Beside().around(Row(row))
    by_row = Renderer(tiny.tokenizer(template)).text(Conversation(TALK, **around))
    return {by_row, tiny.tokenizer(with_variables(template, {"a": value})).apply_chat_template(TALK, tokenize=False)}


@pytest.mark.parametrize("how", ONLY_ASKED)
def test_text_is_true_or_false_where_a_template_only_asks_for_that(how: str) -> None:
    template = ONLY_ASKED[how]
    for said, value in (("false", False), (" False ", False), ("0", False), ("True", True), ("1", True)):
        assert _written(template, said) == _written(template, value)
    assert _written(template, True) != _written(template, False)


@pytest.mark.parametrize("how", USED_AS_TEXT)
@pytest.mark.parametrize("value", ["true", "True", "false", "FALSE", "0"])
def test_text_is_text_where_a_template_uses_it(how: str, value: str) -> None:
    template = USED_AS_TEXT[how]
    as_it_is = tiny.tokenizer(template).apply_chat_template(TALK, tokenize=False, a=value)
    assert _written(template, value) == {as_it_is}


@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_switches_of_published_templates_are_known(path: Path) -> None:
    template = path.read_text(encoding="utf-8")
    named = {name for name in taken(template) if name.endswith(("_thinking", "low_effort", "medium_effort"))}
    assert named <= only_asked(template)
    assert not {"date_string", "reasoning_effort", "model_identity"} & only_asked(template) & set(taken(template))


@pytest.mark.parametrize(
    ("template", "variables", "message"),
    [
        (tiny.CHATML, {"thinking": False}, "does not use thinking; it uses none"),
        (tiny.CHATML + "{{ a }}{{ b }}", {"thinking": False}, "does not use thinking; it uses: a, b$"),
        (tiny.CHATML, {"documents": []}, "does not use documents"),
        *((tiny.CHATML, {name: True}, f"{name} is no variable of a template: it is set") for name in sorted(RESERVED)),
        (tiny.CHATML + "{{ bos_token }}", {"bos_token": "x"}, "does not use bos_token"),
        (tiny.CHATML + "{{ a }}", {"a": {1, 2}}, r"a is \{1, 2\}; a template takes text, numbers"),
        (tiny.CHATML + "{{ enable_thinking }}", {"enable_thinking": "off"}, "'off'; it must be true or false"),
        (None, {"a": 1}, "the model has no chat template"),
    ],
)
def test_values_that_cannot_be_are_one_line(
    tmp_path: Path, template: str | None, variables: dict[str, Any], message: str
) -> None:
    tiny.tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(PostTrainError, match=message) as error:
        load_tokenizer(_spec(tmp_path, template_variables=variables))
    assert "\n" not in str(error.value)
    assert "--model.policy.template_variables" in str(error.value)


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    named = tmp_path / "mine.jinja"
    named.write_text(tiny.CHATML, encoding="utf-8-sig")
    (tmp_path / "chat_template.jinja").write_text(tiny.CHATML, encoding="utf-8-sig")
    for spec in (_spec(tmp_path, chat_template=str(named)), _spec(tmp_path)):
        assert load_tokenizer(spec).chat_template == tiny.CHATML
    named.write_text(tiny.CHATML, encoding="utf-16")
    with pytest.raises(PostTrainError, match=r"mine\.jinja: not UTF-8 \(byte 0\); save it as UTF-8 text"):
        load_tokenizer(_spec(tmp_path, chat_template=str(named)))


@pytest.mark.parametrize("name", ["chat_template.json", "tokenizer_config.json", "mine.jinja"])
def test_a_template_within_json_is_read_from_it(tmp_path: Path, name: str) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "own").mkdir()
    named = tmp_path / "own" / name
    template = tiny.CHATML + "{# mine #}"
    named.write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": template}), encoding="utf-8")
    assert load_tokenizer(_spec(tmp_path, chat_template=str(named))).chat_template == template
    for other in ({"eos_token": "<|im_end|>"}, {"chat_template": [{"name": "default", "template": "x"}]}, [template]):
        named.write_text(json.dumps(other), encoding="utf-8")
        with pytest.raises(PostTrainError, match="JSON without a text under `chat_template`"):
            load_tokenizer(_spec(tmp_path, chat_template=str(named)))
