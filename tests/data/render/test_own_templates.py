"""Templates that users write themselves: they cut words short, or say more than the conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.modules.prompts import PromptOptions
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.models.spec import ModelSpec
from lit_posttrain.models.tokenizers import load_tokenizer, template_ends
from lit_posttrain.rollout.text import prompt_ids

SYSTEM = {"role": "system", "content": "speak of the fox"}
ASK, MORE = {"role": "user", "content": "the colour"}, {"role": "user", "content": "and the dog"}
SAY, LAST = {"role": "assistant", "content": "a fox runs"}, {"role": "assistant", "content": "it is lazy"}
TALK = [SYSTEM, ASK, SAY, MORE, LAST]
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
FOOT = "{{ '<|im_end|>\n' }}{% endfor %}"
OPENS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def build(tmp_path: Path, template: str, *rows: Any, options: Any = None) -> tuple[list[str], TreeStore, AuditReport]:
    """What is trained on, with where it is kept and the audit."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = tiny.tokenizer(template)
    store, audit = build_store([str(path)], made, options or TokenizeOptions(), str(tmp_path / "cache"))
    return [made.decode(r.tokens[r.loss_mask]) for i in range(len(store)) for r in store[i].responses], store, audit


# ------------------------------------------------------------------------------------------- words that are cut short

CUTS = {
    "the system prompt": ("m.content[:8] if m.role == 'system' else m.content", "a fox runs"),
    "to one character": ("m.content[:1]", "a"),
    "the first characters": ("m.content[:5]", "a fox"),
    "nearly all": ("m.content[:9]", "a fox run"),
    "the first word": ("m.content.split()[0]", "a"),
    "the last word": ("m.content.split()[-1]", "runs"),
    "with dots": ("m.content | truncate(8, true, '', 0)", "a fox ru"),
    "as JSON": ("m.content[:5] | tojson", '"a fox"'),
}


@pytest.mark.parametrize(("words", "first"), CUTS.values(), ids=CUTS)
def test_words_that_are_cut_short_are_no_parts(tmp_path: Path, words: str, first: str) -> None:
    template = HEAD + f"{{{{ {words} }}}}" + FOOT + OPENS
    said, _, audit = build(tmp_path, template, {"messages": TALK}, {"messages": [ASK, SAY]})
    assert said[1] == first + "<|im_end|>"
    assert said[0].startswith(first + "<|im_end|>")
    assert audit.files[0].altered.lines[:1] == [1]
    assert "text" not in tiny.tokenizer().decode(prompt_ids(tiny.tokenizer(template), TALK[:2]))


def test_parts_are_never_written_as_python_objects(tmp_path: Path) -> None:
    template = HEAD + "{{ '' if m.content is string else m.content }}" + FOOT + OPENS
    with pytest.raises(PostTrainError, match="writes none of the assistant's words"):
        build(tmp_path, template, {"messages": [ASK, SAY]})


# ------------------------------------------------------------------------------------------- words of other turns

PLAIN = HEAD + "{{ m.content }}" + FOOT


def later(role: str, words: str) -> str:
    """What is written behind a conversation unless an answer is asked for."""
    return OPENS.replace("{% endif", "{% else %}{{ '<|im_start|>" + role + "\n' }}" + words + "<|im_end|>\n{% endif")


BEHIND = {
    "the user's words": PLAIN + later("system", "REMINDER: {{ messages[1].content }}"),
    "some of them": PLAIN + later("system", "REMINDER: {{ messages[1].content[:3] }}"),
    "as a user's turn": PLAIN + later("user", "REMINDER: {{ messages[1].content | upper }}"),
    "the answer's own": PLAIN + later("system", "SUMMARY: {{ messages[-1].content }}"),
    "the template's own": PLAIN + later("system", "Be kind."),
    "before every prompt": PLAIN
    + "{{ '<|im_start|>system\nREMINDER: ' + messages[1].content + '<|im_end|>\n' }}"
    + OPENS,
    "without a closing token": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% else %}{{ 'usual: ' + messages[1].content }}{% endif %}",
}
SPOKEN = "{{ m.role + ': ' + m.content }}"
ASKS = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
LINES = (
    "{% for m in messages %}{{ '### Instruction:\n' if m.role == 'user' else '### Response:\n' }}{{ m.content }}"
    "{{ '\n\n' }}{% if loop.last and m.role == 'assistant' %}{{ 'END' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)


def _either(last: str, other: str) -> str:
    """A template that closes its last answer with other words than all turns before."""
    inner = (
        f"{{% if loop.last and m.role == 'assistant' %}}{{{{ {last!r} }}}}{{% else %}}{{{{ {other!r} }}}}{{% endif %}}"
    )
    return "{% for m in messages %}" + SPOKEN + inner + "{% endfor %}" + ASKS


# templates that close the last turn alone, in words -> what closes it
CLOSED = {
    "a heading": (LINES.replace("END", "### End"), "\n\n### End"),
    "a word": (LINES.replace("END", "The end."), "\n\nThe end."),
    "in brackets": (_either(" (done)\n", " (sep)\n"), " (done)\n"),
    "begins alike": (_either("\n---end\n", "\n---more\n"), "\n---end\n"),
    "in the same line": (_either(" STOP ", " "), " STOP "),
    "a line that all turns have": (_either("\n---\n== bye", "\n---\n"), "\n---\n"),
}


@pytest.mark.parametrize(("template", "end"), CLOSED.values(), ids=CLOSED)
def test_the_words_that_close_the_last_turn_alone_are_its_end(tmp_path: Path, template: str, end: str) -> None:
    said, _, _ = build(tmp_path, template, {"messages": TALK[1:3]}, {"messages": TALK[1:]})
    assert "".join(said) == f"a fox runs{end}" * 2 + f"it is lazy{end}"


INTO = {
    "behind every answer": HEAD + "{{ m.content }}<|im_end|>{% if m.role == 'assistant' %}"
    "{{ '(to ' + messages[1].content[:3] + ')' }}{% endif %}{{ '\n' }}{% endfor %}" + OPENS,
    "before every answer": HEAD + "{% if m.role == 'assistant' %}{{ messages[1].content | upper + ': ' }}{% endif %}"
    "{{ m.content }}" + FOOT + OPENS,
    "the order reversed": PLAIN.replace("in messages", "in messages | reverse") + OPENS,
}


@pytest.mark.parametrize("template", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("messages", [TALK, TALK[:3]], ids=["two turns", "one turn"])
def test_what_a_template_writes_behind_the_last_turn_is_not_trained(
    tmp_path: Path, template: str, messages: list[dict[str, str]]
) -> None:
    said, _, _ = build(tmp_path, template, {"messages": messages})
    end = "<|im_end|>" if "im_end" in template else "\n"
    answers = [m["content"] + end for m in messages if m["role"] == "assistant"]
    assert "".join(said) == "".join(answers)


@pytest.mark.parametrize("template", INTO.values(), ids=INTO)
def test_words_of_other_turns_are_never_trained(tmp_path: Path, template: str) -> None:
    with pytest.raises(PostTrainError, match=r"rows\.jsonl:1: .* writes words of turn \d \(\w+\) into turn 3 \(assist"):
        build(tmp_path, template, {"messages": TALK})
    said, _, audit = build(tmp_path, template, {"messages": TALK}, options=TokenizeOptions(on_bad_row="skip"))
    assert (said, audit.total.dropped_count) == ([], 1)


# ------------------------------------------------------------------------------------------- what is lost


@pytest.mark.parametrize("role", ["system", "developer", "user"])
@pytest.mark.parametrize("options", [TokenizeOptions(), PromptOptions()], ids=["sft", "prompts"])
def test_a_turn_that_is_left_out_is_named(tmp_path: Path, role: str, options: Any) -> None:
    template = PLAIN.replace("{{ '<|im_start|>'", "{% if not loop.first %}{{ '<|im_start|>'").replace(
        FOOT, "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )
    messages = [{"role": role, "content": "speak of the fox"}, ASK]
    row = {"messages": [*messages, SAY]} if isinstance(options, TokenizeOptions) else {"prompt": messages}
    _, _, audit = build(tmp_path, template + OPENS, row, options=options)
    assert audit.files[0].lost[f"turn 1 ({role})"].lines == [1]
    assert any(f"leaves out turn 1 ({role}) of 1 row " in line for line in audit.warnings)


def test_a_variable_that_only_the_prompt_shows_is_used(tmp_path: Path) -> None:
    template = (
        HEAD + "{% if loop.last and m.role == 'assistant' %}{{ '<think></think>' }}{% endif %}{{ m.content }}" + FOOT
    )
    template += OPENS.replace("{% endif", "{% if not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif")
    row = {"messages": [ASK, SAY], "chat_template_kwargs": {"enable_thinking": False}}
    other = {"messages": [ASK, SAY], "chat_template_kwargs": {"enable_thinking": True}}
    _, _, audit = build(tmp_path, template, other, row)
    assert not audit.files[0].unread


def test_a_template_that_calls_itself_without_end_is_one_line(tmp_path: Path) -> None:
    endless = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"
    with pytest.raises(PostTrainError, match=r"recursion depth exceeded.*; mend the conversation, or name a corrected"):
        build(tmp_path, endless, {"messages": [ASK, SAY]})
    assert template_ends(tiny.tokenizer(endless)) == []


def test_a_template_file_that_is_no_jinja_is_named(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}\n{{ m.content }")
    with pytest.raises(PostTrainError, match=r"chat_template \S+mine\.jinja: not valid Jinja \(line 2: .*\); mend the"):
        load_tokenizer(ModelSpec("none", tokenizer=str(tmp_path / "model"), chat_template=str(file)))
