"""Messages in every spelling of other tools: roles, tool calls, marks, thoughts, lists per key."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.columns import ASKED, SHAPES, TALK, WORSE, example, pair, sft

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.prompts import PromptColumns, prompt_reader
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.kinds import CONVERSATION
from lit_posttrain.data.rows.marks import ROW_MARKS
from lit_posttrain.data.rows.message_keys import REASONING
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError


def test_tools_and_tool_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "Q", "tool_calls": None, "name": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1", "name": "f"},
            {"role": "assistant", "content": "A", "tool_calls": []},
        ],
        "tools": '[{"type": "function"}]',
    }
    made = example(row)
    assert made.tools == [{"type": "function"}]
    assert made.messages[0] == {"role": "user", "content": "Q"}
    assert made.messages[1]["content"] == ""
    assert made.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert made.messages[2]["name"] == "f"
    assert "tool_calls" not in made.messages[3]


def test_calls_in_openais_older_format() -> None:
    call = {"name": "f", "arguments": '{"x": 1}'}
    older: list[dict[str, Any]] = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": "A"},
    ]
    made = example({"messages": older}).messages
    assert made[1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    assert made[2] == {"role": "tool", "name": "f", "content": "1"}
    with pytest.raises(BadRow, match=r"messages\[1\] has both function_call and tool_calls; keep tool_calls"):
        example({"messages": [older[0], {**older[1], "tool_calls": [{"type": "function", "function": call}]}]})


def test_sharegpt_tool_roles_and_text_parts() -> None:
    turns = [
        {"from": "human", "value": "Q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "A"},
    ]
    made = example({"conversations": turns})
    assert [m["role"] for m in made.messages] == ["user", "assistant", "tool", "assistant"]
    assert made.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, ASKED[1]]
    assert example({"messages": parts}).messages == ASKED


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weight": 0.5}, r"messages\[1\]: `weight` is 0.5; it must be 1 \(train on it\) or 0"),
        ({"weight": 2}, "`weight` is 2; it must be 1"),
        ({"train": "perhaps"}, "`train` is 'perhaps'"),
        ({"weight": 0, "train": True}, "`weight` and `train` contradict each other; keep one"),
        ({"train": True, "masked": True}, "`train` and `masked` contradict"),
        ({"mask": 1}, "`mask` is trained on in some tools and left out in others; rename it"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 0, "train": True}]}, "marks parts of a turn"),
        (
            {"train": True, "train_detail": [{"begin_offset": 0, "end_offset": 5, "train": True}]},
            "marks parts of a turn",
        ),
        (
            {"weight": 1, "training_detail": [{"begin_offset": 3, "end_offset": 9, "train": False}]},
            "marks parts of a t",
        ),
        ({"content": "ABCD", "train_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]}, "marks parts"),
        ({"content": "ABCD", "train_detail": [{"begin_offset": 2, "end_offset": 3, "train": False}]}, "marks parts"),
        ({"train_detail": "all"}, "marks parts of a turn"),
        ({"train_detail": [{"train": False}]}, "marks parts of a turn"),
    ],
)
def test_marks_that_are_no_yes_or_no_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        example({"messages": [ASKED[0], {**ASKED[1], **keys}]})


@pytest.mark.parametrize("key", ["weight", "sample_weight", "loss_weight", "loss_scale"])
def test_weights_of_rows_are_not_rounded(key: str) -> None:
    with pytest.raises(BadRow, match=f"^`{key}` is 0.3; it must be 1 .* --data.weights weighs whole files"):
        example({"messages": ASKED, key: 0.3})
    assert example({"prompt": "Q", "completion": "A", "weight": "72 kg"}).messages == ASKED


@pytest.mark.parametrize("mark", ROW_MARKS)
def test_a_list_of_marks_is_none_of_the_row(mark: str) -> None:
    row = Row({"messages": ASKED, mark: [0, 1]})
    assert sft(row) == ASKED
    assert row.unread == [mark]


def test_a_turn_of_which_every_part_is_marked_is_not_trained_on() -> None:
    detail = [{"begin_offset": 0, "end_offset": 0, "train": False}]
    rows: list[dict[str, Any]] = [ASKED[0], {**ASKED[1], "train_detail": detail}, ASKED[0], ASKED[1]]
    assert example({"messages": rows}).untrained == frozenset({1})
    rows[1]["train"] = True  # as axolotl has it, the parts say more than the turn
    assert example({"messages": rows}).untrained == frozenset({1})
    empty: list[list[object] | None] = [[], None]
    for nothing in empty:
        rows[1] = {**ASKED[1], "train_detail": nothing, "training_detail": nothing}
        assert example({"messages": rows}).untrained == frozenset()
    row = Row(
        {"messages": [{**ASKED[0], "train_detail": [{"begin_offset": 0, "end_offset": 0, "train": True}]}, ASKED[1]]}
    )
    assert recognise(Record({**row}, "rows.jsonl", 1)).example(row).messages == ASKED
    assert row.unread == ["message.train_detail of user turns"]


@pytest.mark.parametrize("row", [*SHAPES.values(), {"instruction": "Q", "output": "A"}])
def test_notes_of_a_row_do_not_make_it_a_single_message(row: dict[str, Any]) -> None:
    noted = {**row, "role": "assistant", "text": "x"}
    if set(row) & {"chosen", "responses", "response1", "label"}:
        assert pair(Row(noted)) == pair(Row(row))
    else:
        assert example(noted).messages == ASKED


def by_key(messages: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [message[key] for message in messages] for key in messages[0]}


BY_KEY: list[dict[str, Any]] = [
    *({column: ASKED} for column in CONVERSATION),
    *({column: ASKED, "label": True} for column in CONVERSATION),
    {"prompt": ASKED[:1], "completion": ASKED[1:]},
    {"prompt": "Q", "completion": ASKED},
    {"prompt": ASKED[:1], "completion": ASKED[1:], "label": False},
    {"prompt": ASKED[:1], "chosen": ASKED[1:], "rejected": [WORSE]},
    {"prompt": "Q", "chosen": ASKED, "rejected": [ASKED[0], WORSE]},
    {"chosen": ASKED, "rejected": [ASKED[0], WORSE]},
    {"messages": ASKED[:1], "chosen": ASKED[1:], "rejected": [WORSE]},
    {"prompt": ASKED[:1], "response1": ASKED[1:], "response2": [WORSE], "label": 1},
    {"conversation_a": ASKED, "conversation_b": [ASKED[0], WORSE], "winner": "model_a"},
    {"prompt": ASKED[:1], "responses": [{"content": ASKED[1:]}, {"content": [WORSE]}], "ranks": [1, 2]},
    {"context": ASKED[:1], "response1": "A", "response2": "B", "overall_preference": -1},
    {"prompt": "Q", "history": TALK[2:], "completion": "A"},
]


@pytest.mark.parametrize("row", BY_KEY, ids=lambda row: "/".join(row))
def test_messages_by_key_are_read_as_a_list_of_them(row: dict[str, Any]) -> None:
    """As `datasets` has them; by every reader, which takes such a row or says the same of it."""

    def keyed(value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
            return value
        if all("role" in part for part in value):
            return by_key(value)
        return [{key: keyed(inner) for key, inner in part.items()} for part in value]

    other = {column: keyed(value) for column, value in row.items()}
    assert other != row
    told = 0
    for read in (sft, pair, lambda seen: prompt_reader(Record({**seen.aside()}, "f", 1)).example(seen).messages):
        found: list[tuple[object, list[str]]] = []
        for data in (row, other):
            try:
                seen = Row(data)
                found.append((read(seen), seen.unread))
            except PostTrainError as problem:
                found.append((str(problem), []))
        told += isinstance(found[0][0], str)
        assert found[0] == found[1]
    assert told < 3


def test_a_column_by_key_is_read_where_it_is_named() -> None:
    assert example({"talk": by_key(ASKED)}, Columns(messages="talk")).messages == ASKED
    columns = Columns(prompt="asked", completion="said")
    assert example({"asked": by_key(ASKED[:1]), "said": by_key(ASKED[1:])}, columns).messages == ASKED
    asked = {"asked": by_key(ASKED)}
    assert (
        prompt_reader(Record(asked, "f", 1), PromptColumns(messages="asked")).example(Row(asked)).messages == ASKED[:1]
    )


@pytest.mark.parametrize("key", REASONING)
@pytest.mark.parametrize("empty", ["", " \n", [], {}])
def test_an_empty_thought_is_none(key: str, empty: Any) -> None:
    said = {"role": "assistant", "content": "<think>R</think>A"}
    assert example({"messages": [ASKED[0], {**said, key: empty}]}).messages == [ASKED[0], said]


def test_ai_is_the_assistant() -> None:
    assert example({"messages": [{"role": "Human", "content": "Q"}, {"role": "AI", "content": "A"}]}).messages == ASKED
