"""What belongs to rows of every kind: system prompts, history, tools, switches of the template, media."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.columns import ASKED, SHAPES, example, sft

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.beside import MEDIA_COLUMNS
from lit_posttrain.data.rows.row import Row


def test_system_prompts() -> None:
    own = {"messages": ASKED, "system": "own"}
    assert example(own, system_prompt="given").messages[0]["content"] == "own"
    assert example({"messages": ASKED}, system_prompt="given").messages[0]["content"] == "given"
    has = {"messages": [{"role": "system", "content": "first"}, *ASKED], "system": "own"}
    made = example(has, system_prompt="given")
    assert [m["content"] for m in made.messages] == ["first", "Q", "A"]
    assert example({"prompt": "Q", "completion": "A"}, system_prompt="given").prompt_turns == 2


OWN = {"system_message": "own"}


@pytest.mark.parametrize(
    ("given", "more"),
    [
        *(({"system": 3}, OWN), ({"system": "", "system_prompt": True}, OWN)),
        *((given, more) for given in ({"system": " "}, {}) for more in ({}, OWN)),
    ],
)
def test_a_system_column_without_text_leaves_the_place_to_the_next_one(
    given: dict[str, Any], more: dict[str, str]
) -> None:
    beside, expected = {**given, **more}, {"role": "system", "content": "own" if more else "given"}
    assert example({"messages": ASKED, **beside}, system_prompt="given").messages[0] == expected
    pair = {"prompt": "Q", "chosen": "A", "rejected": "B", **beside}
    assert recognise_comparison(Record(pair, "f", 1)).read(pair, "given").prompt[0] == expected
    asked = {"prompt": "Q", **beside}
    assert prompt_reader(Record(asked, "f", 1), system_prompt="given").example(Row(asked)).messages[0] == expected
    numbers = [name for name, value in given.items() if isinstance(value, int)]
    row = Row({"messages": ASKED, **beside})
    recognise(Record({**row.aside()}, "f", 1)).example(row, "given")
    assert row.unread == numbers


FREE: list[tuple[str, Any]] = [
    *(("history", value) for value in (3, 0.5, True)),
    *((n, value) for n in ("functions", "tools") for value in ("def f(): ...", "[Test]\nint f();", "{ return; }", 3)),
    *((n, v) for n in ("functions", "tools") for v in (["search", "calculator"], ["def f(): pass"], '["search"]')),
    *(("context", value) for value in ({"a": 1}, [1, 2], [{"a": "b"}])),
    *(("context", value) for value in ([["Title", ["a", "b"]]], [["a", "b"], ["c"]])),
]
MEANT: list[tuple[str, Any]] = [
    *(("history", value) for value in ('["a"]', "[['a', 'b']]", '[["a", "b"]', "[1]", {"a": 1}, '{"a": 1}')),
    *(("history", value) for value in ("User: hi", "[WP] A knight", "[1, 2", "[]x", "{a")),
    *(("history", value) for value in (["a"], [["a", "b"], ["c"]], [["a", None]], [["a", 1]], [{"role": "x"}])),
    *((name, value) for name in ("functions", "tools") for value in ({"a": 1}, [1], "[1]", '{"a": 1}')),
    *(
        (name, value)
        for name in ("functions", "tools")
        for value in (['{"name": '], [{"name": "f"}, "g"], ["g", ["f"]])
    ),
    *((n, v) for n in ("functions", "tools") for v in ("[{'type': 'function'}]", '[{"type": ', '\n[\n {"name": f}]')),
    *((name, value) for name in ("input", "context") for value in (["a", "b"], [ASKED[0]], ["a", ["b"]])),
    *(("input", value) for value in ({"a": 1}, [1, 2], [{"a": "b"}], [["a", "b"], ["c"]], 3, True)),
    *((name, value) for name in ("system", "system_prompt") for value in ({"os": "linux"}, ["be brief"], [ASKED[0]])),
    *((name, value) for name in ("system", "system_prompt") for value in (1, 0.5, True)),
]


@pytest.mark.parametrize(("column", "value"), FREE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_column_that_holds_something_else_than_its_name_says_is_left_unread(
    shape: str, column: str, value: Any
) -> None:
    row = Row({**SHAPES[shape], column: value})
    record = Record({**row}, "rows.jsonl", 1)
    row = row.aside()
    if shape in ("conversation", "prompt and completion"):
        prompt = recognise(record).example(row).messages[:1]
    else:
        prompt = recognise_comparison(record).read(row).prompt
    assert prompt == [{"role": "user", "content": "Q"}]
    assert row.unread == [column]
    if shape != "conversation":
        seen = row.aside()
        asked = prompt_reader(record).example(seen)
        assert (asked.messages, asked.tools) == (prompt, None)
        assert seen.notes == [f"with a column `{column}` that is no part of the prompt"]


@pytest.mark.parametrize(
    ("shape", "column", "value"),
    [
        (shape, column, value)
        for column, value in MEANT
        for shape in SHAPES  # more of a prompt is no part of a whole conversation
        if shape not in ("conversation", "whole pair") or column not in ("input", "context")
    ],
)
def test_a_column_that_is_wrongly_what_its_name_says_is_a_bad_row(shape: str, column: str, value: Any) -> None:
    row = {**SHAPES[shape], column: value}
    record = Record({**row}, "rows.jsonl", 1)
    single = shape in ("conversation", "prompt and completion")
    read: Any = recognise(record).example if single else recognise_comparison(record).read
    with pytest.raises(BadRow, match=column) as caught:
        read(row)
    assert "\n" not in str(caught.value)
    if shape != "conversation":
        with pytest.raises(BadRow, match=column):
            prompt_reader(record).example(Row(row))


EARLIER = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "said"}]


@pytest.mark.parametrize("history", [EARLIER, [["before", "said"]]])
@pytest.mark.parametrize("shape", SHAPES)
def test_history_stands_before_every_kind_of_row(shape: str, history: Any) -> None:
    row = {**SHAPES[shape], "history": history}
    record, asked = Record(row, "rows.jsonl", 1), [*EARLIER, {"role": "user", "content": "Q"}]
    if shape in ("conversation", "prompt and completion"):
        found = recognise(record).example(row)
        assert (found.messages, found.prompt_turns) == ([*asked, ASKED[1]], 3)
    else:
        assert recognise_comparison(record).read(row).prompt == asked
    seen = Row(row)
    assert prompt_reader(record).example(seen).messages == asked
    assert "history" not in seen.rest()


@pytest.mark.parametrize("turns", [1, 2])
def test_history_that_a_conversation_begins_with_is_not_repeated(turns: int) -> None:
    talk = [*EARLIER, *ASKED, *ASKED]
    seen = Row({"messages": talk, "history": talk[: 2 * turns]})
    record = Record({**seen.aside()}, "rows.jsonl", 1)
    assert recognise(record).example(seen).messages == talk
    assert seen.unread == []
    assert prompt_reader(record).example(seen.aside()).messages == talk[:-1]


@pytest.mark.parametrize("value", [value for column, value in FREE if column == "tools"])
def test_a_column_that_the_user_named_must_hold_what_it_is_named_for(value: Any) -> None:
    row = {"messages": ASKED, "tools": value}
    with pytest.raises(BadRow, match="tools"):
        recognise(Record(row, "rows.jsonl", 1), Columns(tools="tools")).example(row)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((no, False) for no in (False, "False", "false", 0, "0", 0.0)),
        *((yes, True) for yes in (True, "True", " true", 1, "1")),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_switch_of_the_template_is_read_as_marks_are(value: Any, expected: bool, inside: bool) -> None:
    beside = {"chat_template_kwargs": {"enable_thinking": value}} if inside else {"enable_thinking": value}
    data = {"prompt": "Q", "completion": "A", **beside}
    row = Row(data)
    made = recognise(Record(data, "f", 1)).example(row)
    assert made.variables["enable_thinking"] is expected
    assert not row.unread


def test_a_switch_that_says_neither_is_refused() -> None:
    row = {"prompt": "Q", "completion": "A"}
    for value in ("off", 2, [False]):
        with pytest.raises(BadRow, match=r"enable_thinking is .*; it must be true or false"):
            example({**row, "enable_thinking": value})
    for nothing in (None, ""):
        assert example({**row, "enable_thinking": nothing}).variables == {}
    kept = {"reasoning_effort": "high", "thinking": "false", "budget": 0}
    assert example({**row, "chat_template_kwargs": kept}).variables == kept  # as the template wants them


@pytest.mark.parametrize("column", MEDIA_COLUMNS)
def test_rows_with_more_than_text_are_refused_by_every_reader(column: str) -> None:
    chosen = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    sights = [
        "x.png",
        "a/b.JPG?size=3",
        "https://example.com/3",
        "data:image/png;base64,abc",
        "iVBO/+" * 50,
        {"a": "b"},
    ]
    for value in (*sights, ["x.png"], [{"bytes": "abc"}], ["no", "x.wav"], [0.1, -0.2], [[0, 255]], b"abc"):
        with pytest.raises(BadRow, match=f"`{column}` holds .*the model would not see it"):
            example({"messages": ASKED, column: value})
        with pytest.raises(BadRow, match=f"`{column}` holds"):
            recognise_comparison(Record({**chosen, column: value}, "f", 1)).read({**chosen, column: value})
        with pytest.raises(BadRow, match=f"`{column}` holds"):
            prompt_reader(Record({"prompt": "Q", column: value}, "f", 1)).example(Row({"prompt": "Q", column: value}))
        other = MEDIA_COLUMNS[MEDIA_COLUMNS[0] == column]
        with pytest.raises(BadRow, match=f"`{column}` holds"):
            example({"messages": ASKED, other: "ubuntu:20.04", column: value})
    empty: list[object] = [None, "", [], False, [None], [{}]]
    for nothing in empty:
        assert example({"messages": ASKED, column: nothing}).messages == ASKED
    for container in ("ubuntu:20.04", "swebench/sweb.eval.x86_64.django-1:latest", ["python:3.12"], "a cat", 3):
        row = Row({"messages": ASKED, column: container})
        assert sft(row) == ASKED
        assert row.unread == [column]
        asked = {"prompt": "Q", column: container}
        assert prompt_reader(Record(asked, "f", 1)).example(Row(asked)).messages == ASKED[:1]
    assert example({column: "Q", "completion": "A"}, Columns(prompt=column, completion="completion")).messages == ASKED
