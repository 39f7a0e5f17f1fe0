"""Templates that write the date or the time."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from helpers import tiny
from helpers.templates import TALK, ZULU, build, tokenizer

from lit_posttrain.data.render.clock import at_one_moment

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
