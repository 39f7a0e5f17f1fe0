"""Columns to conversations: every usual shape, named columns, and rows that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.formats.prompts import PromptColumns, prompt_reader
from lit_posttrain.data.modules.preference import ComparisonReader
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.beside import MEDIA_COLUMNS
from lit_posttrain.data.rows.kinds import ANSWERS, CONVERSATION, PROMPT
from lit_posttrain.data.rows.marks import ROW_MARKS
from lit_posttrain.data.rows.message_keys import REASONING
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError

ASKED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def example(row: dict[str, Any], columns: Columns | None = None, system_prompt: str | None = None) -> Example:
    return recognise(Record(row, "train.jsonl", 1), columns).example(row, system_prompt)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": ASKED}, "messages"),
        ({"conversation": ASKED}, "conversation"),
        ({"conversations": [{"role": "prompter", "content": "Q"}, {"role": "bot", "content": "A"}]}, "conversations"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "conversations"),
        ({"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'}, "messages"),
        ({"prompt": "Q", "completion": "A"}, "prompt/completion"),
        ({"prompt": "Q", "response": "A", "text": "Q A"}, "prompt/response"),
        ({"prompt": ASKED[:1], "completion": ASKED[1:]}, "prompt/completion"),
        ({"prompt": ASKED[:1], "completion": "A"}, "prompt/completion"),
        ({"instruction": "Q", "input": "", "output": "A"}, "instruction/input/output"),
        ({"instruction": "Q", "output": "A"}, "instruction/output"),
        ({"instruction": "Q", "context": None, "response": "A"}, "instruction/context/response"),
        ({"question": "Q", "answer": "A"}, "question/answer"),
        ({"id": 1, "messages": ASKED, "prompt": "Q"}, "messages"),
    ],
)
def test_recognised_by_columns(row: dict[str, Any], name: str) -> None:
    found = recognise(Record(row, "train.jsonl", 1))
    made = found.example(row)
    assert (found.name, made.messages, made.prompt_turns) == (name, ASKED, 1)


def test_the_input_is_part_of_the_prompt_even_if_the_first_row_has_none() -> None:
    shape = recognise(Record({"instruction": "Q", "output": "A"}, "train.jsonl", 1))
    made = shape.example({"instruction": "Q", "input": "more", "output": "A"})
    assert made.messages[0]["content"] == "Q\n\nmore"
    assert made.text == ("Q\n\nmore\n\n", "A")


TALK = [*ASKED, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}]
WORSE = {"role": "assistant", "content": "B"}
BRIEF = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": ASKED, "rejected": [*ASKED[:1], WORSE]},
        {"prompt": ASKED[:1], "chosen": ASKED, "rejected": [*ASKED[:1], WORSE]},
        {"prompt": ASKED[:1], "chosen": ASKED[1:], "rejected": [WORSE]},
        {"prompt": "Q", "chosen": [BRIEF, *ASKED], "rejected": [BRIEF, *ASKED[:1], WORSE]},
        {"prompt": [BRIEF, *ASKED[:1]], "chosen": ASKED, "rejected": [*ASKED[:1], WORSE]},
        {"prompt": "Q", "system": "be brief", "chosen": ASKED, "rejected": [*ASKED[:1], WORSE]},
        {"prompt": "Q2", "chosen": TALK, "rejected": [*TALK[:3], WORSE]},
        {"prompt": TALK[:3], "chosen": TALK, "rejected": [*TALK[:3], WORSE]},
        {"instruction": "Q", "input": "in", "chosen": "A", "rejected": "B"},
        {"instruction": "Q", "context": "in", "chosen": ASKED[1:], "rejected": [WORSE]},
        {"question": "Q", "chosen": ASKED, "rejected": [*ASKED[:1], WORSE]},
        {"chosen": ASKED, "rejected": [*ASKED[:1], WORSE]},
    ],
)
def test_the_advice_for_pairs_trains_the_conversation_that_pairs_have(row: dict[str, Any]) -> None:
    with pytest.raises(PostTrainError, match="to imitate the better side, pass") as refused:
        example(row)
    option, column = str(refused.value).split("pass --data.columns.")[1].split()
    made, pair = example(row, Columns(**{option: column})), recognise_comparison(Record(row, "f", 1)).read(row)
    assert made.messages == [*pair.prompt, *pair.candidates[0].messages]
    assert made.prompt_turns == len(pair.prompt)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"},
        {"prompt": "Q", "chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"prompt": "Q", "chosen": json.dumps(ASKED), "rejected": json.dumps([*ASKED[:1], WORSE])},
    ],
)
def test_no_advice_where_it_would_train_other_turns(row: dict[str, Any]) -> None:
    with pytest.raises(PostTrainError, match="not conversations but pairs") as refused:
        example(row)
    assert "imitate" not in str(refused.value)


def test_a_completion_that_begins_with_another_prompt_is_refused() -> None:
    with pytest.raises(BadRow, match="`chosen` begins with 'Q' where `prompt` is 'Something else'"):
        example({"prompt": "Something else", "chosen": ASKED}, Columns(prompt="prompt", completion="chosen"))
    with pytest.raises(PostTrainError, match=r"no prompt for --data.columns.completion chosen; .*columns are chosen"):
        example({"chosen": "A"}, Columns(completion="chosen"))


def test_strings_stay_as_they_are_without_a_template() -> None:
    assert example({"prompt": "2+2=", "completion": "4"}).text == ("2+2=", "4")
    assert example({"text": "words"}) == Example([], text=("", "words"))


def test_named_columns_and_their_errors() -> None:
    row = {"frage": "Q", "antwort": "A", "rolle": "S"}
    made = example(row, Columns(prompt="frage", completion="antwort", system="rolle"))
    assert made.messages == [{"role": "system", "content": "S"}, *ASKED]
    assert example({"dialog": ASKED}, Columns(messages="dialog")).messages == ASKED
    assert example({"body": "words"}, Columns(text="body")).text == ("", "words")
    with pytest.raises(
        PostTrainError,
        match=r"^train.jsonl:1: no column `fragen` \(--data.columns.prompt\); the columns are frage, antwort, rolle; "
        r"did you mean `frage`\?$",
    ):
        example(row, Columns(prompt="fragen", completion="antwort"))
    with pytest.raises(PostTrainError, match=r"wants `prompt` with `completion`, or `messages`, or `text`: name one"):
        example(row, Columns(prompt="frage"))
    with pytest.raises(
        PostTrainError, match=r"^train.jsonl:1: columns not recognised: frage, antwort, rolle; name them"
    ):
        example(row)


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
    older = [
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
    assert _sft(row) == ASKED
    assert row.unread == [mark]


def test_a_turn_of_which_every_part_is_marked_is_not_trained_on() -> None:
    detail = [{"begin_offset": 0, "end_offset": 0, "train": False}]
    rows = [ASKED[0], {**ASKED[1], "train_detail": detail}, ASKED[0], ASKED[1]]
    assert example({"messages": rows}).untrained == frozenset({1})
    rows[1]["train"] = True  # as axolotl has it, the parts say more than the turn
    assert example({"messages": rows}).untrained == frozenset({1})
    for nothing in ([], None):
        rows[1] = {**ASKED[1], "train_detail": nothing, "training_detail": nothing}
        assert example({"messages": rows}).untrained == frozenset()
    row = Row(
        {"messages": [{**ASKED[0], "train_detail": [{"begin_offset": 0, "end_offset": 0, "train": True}]}, ASKED[1]]}
    )
    assert recognise(Record({**row}, "rows.jsonl", 1)).example(row).messages == ASKED
    assert row.unread == ["message.train_detail of user turns"]


def _turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ({"messages": ASKED[:1]}, "no assistant turn", r"no assistant turn \(roles: user\)"),
        ({"messages": []}, "no turns", "`messages` is an empty list"),
        ({"messages": ["a"]}, "wrong type", "`messages` is a list, not a list of messages"),
        ({"messages": '[{"role"'}, "wrong type", r"messages: not valid JSON \(.* column \d+\)"),
        (_turns("user", "narrator"), "unknown role", r"messages\[1\]: role 'narrator'; roles are system, user"),
        (_turns("user", "assistant", "system"), "role order", "a system turn after the first turn"),
        (_turns("assistant", "user"), "role order", "starts with the assistant"),
        (_turns("user", "tool", "assistant"), "role order", "a tool turn that no assistant turn called"),
        (
            {"messages": [ASKED[0], {"role": "assistant", "content": " "}]},
            "empty completion",
            "assistant's turn is empty",
        ),
        ({"messages": [{"role": "user", "content": 3}, ASKED[1]]}, "wrong type", r"messages\[0\]: content is 3, not a"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASKED[1]]},
            "wrong type",
            "only text can be trained on",
        ),
        ({"prompt": "Q", "completion": ""}, "empty completion", "`completion` is empty"),
        ({"prompt": ASKED[:1], "completion": " "}, "empty completion", "turn is empty"),
        ({"prompt": "Q", "completion": None}, "wrong type", "`completion` is null, not a string or a list"),
        ({"prompt": 5, "completion": "A"}, "wrong type", "`prompt` is 5, not a string or a list"),
        ({"text": " "}, "empty text", "`text` is empty"),
        ({"text": 7}, "wrong type", "`text` is 7, not a string"),
        ({"messages": [{"role": "user", "content": " "}, ASKED[1]]}, "empty prompt", "nothing is asked"),
        (
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": ""}, *ASKED[1:], *ASKED]},
            "empty prompt",
            "nothing is asked",
        ),
        ({"prompt": "", "completion": "A"}, "empty prompt", "`prompt` is empty: nothing is asked"),
        ({"prompt": " ", "input": "\n", "completion": "A"}, "empty prompt", "`prompt` is empty: nothing is asked"),
        ({"prompt": [{"role": "user", "content": ""}], "completion": "A"}, "empty prompt", "`prompt` is empty"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(BadRow, match=message) as error:
        example(row)
    assert error.value.reason == reason
    assert "\n" not in str(error.value)


def test_every_row_needs_the_columns_of_the_first() -> None:
    shape = recognise(Record({"question": "Q", "answer": "A"}, "train.jsonl", 1))
    with pytest.raises(BadRow, match=r"no column `answer` \(found: question, reply\)"):
        shape.example({"question": "Q", "reply": "A"})


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
SHAPES: dict[str, dict[str, Any]] = {
    "conversation": {"messages": ASKED},
    "prompt and completion": {"prompt": "Q", "completion": "A"},
    "pair": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "whole pair": {"chosen": ASKED, "rejected": [ASKED[0], {"role": "assistant", "content": "B"}]},
    "ranking": {"prompt": "Q", "responses": ["A", "B"], "ranks": [0, 1]},
    "judged": {"prompt": "Q", "response1": "A", "response2": "B", "label": 1},
    "unpaired": {"prompt": "Q", "completion": "A", "label": True},
}


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
    ("row", "columns", "expected"),
    [
        ({"history": ASKED[:1], "completion": "A"}, Columns(prompt="history", completion="completion"), ASKED),
        ({"system": "Q", "completion": "A"}, Columns(prompt="system", completion="completion"), ASKED),
        ({"prompt": "Q", "thinking": "A"}, Columns(prompt="prompt", completion="thinking"), ASKED),
        ({"prompt": "Q", "reasoning_content": "A"}, Columns(prompt="prompt", completion="reasoning_content"), ASKED),
        ({"history": ASKED}, Columns(messages="history"), ASKED),
    ],
)
def test_no_column_is_read_twice(row: dict[str, Any], columns: Columns, expected: list[Any]) -> None:
    assert recognise(Record(row, "rows.jsonl", 1), columns).example(row).messages == expected
    if columns.prompt:
        named = PromptColumns(prompt=columns.prompt)
        assert prompt_reader(Record(row, "rows.jsonl", 1), named).example(Row(row)).messages == expected[:1]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "", "chosen": "A", "rejected": "B"},
        {"prompt": [{"role": "user", "content": " "}], "chosen": "A", "rejected": "B"},
        {"prompt": " ", "responses": ["A", "B"], "ranks": [0, 1]},
        {"prompt": "", "response1": "A", "response2": "B", "label": 1},
        {"prompt": "", "completion": "A", "label": True},
    ],
)
def test_nobody_answers_an_empty_prompt(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="`prompt` is empty: nothing is asked"):
        recognise_comparison(Record(row, "rows.jsonl", 1)).read(row)
    beside = {**row, "input": "Q"}
    assert (
        isinstance(row["prompt"], list)
        or recognise_comparison(Record(beside, "rows.jsonl", 1)).read(beside).prompt == ASKED[:1]
    )


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
    for nothing in (None, "", [], False, [None], [{}]):
        assert example({"messages": ASKED, column: nothing}).messages == ASKED
    for container in ("ubuntu:20.04", "swebench/sweb.eval.x86_64.django-1:latest", ["python:3.12"], "a cat", 3):
        row = Row({"messages": ASKED, column: container})
        assert _sft(row) == ASKED
        assert row.unread == [column]
        asked = {"prompt": "Q", column: container}
        assert prompt_reader(Record(asked, "f", 1)).example(Row(asked)).messages == ASKED[:1]
    assert example({column: "Q", "completion": "A"}, Columns(prompt=column, completion="completion")).messages == ASKED


@pytest.mark.parametrize("begun", ["Q", "Q\n\nC"])
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("name", ["context", "input"])
def test_an_answer_may_begin_with_its_prompt_with_or_without_what_is_added_to_it(
    name: str, as_text: bool, begun: str
) -> None:
    whole: Any = [{"role": "user", "content": begun}, ASKED[1]]
    worse: Any = [whole[0], WORSE]
    if as_text:
        whole, worse = json.dumps(whole), json.dumps(worse)
    asked = {"prompt": "Q", name: "C"}
    learned = [{**asked, "completion": whole}, {**asked, "chosen": whole, "rejected": worse}]
    for row, read in zip(learned, (_sft, _pair), strict=True):
        seen = Row(row)
        assert read(seen) == [{"role": "user", "content": begun}, ASKED[1]]
        assert seen.unread == ([name] if begun == "Q" else [])
    kto = {**asked, "completion": whole, "label": True}
    assert _pair(Row(kto)) == [{"role": "user", "content": begun}, ASKED[1]]


def _sft(row: Row) -> list[dict[str, Any]]:
    return recognise(Record({**row.aside()}, "rows.jsonl", 1)).example(row).messages


def _pair(row: Row) -> list[dict[str, Any]]:
    made = recognise_comparison(Record({**row.aside()}, "rows.jsonl", 1)).read(row)
    return [*made.prompt, *made.candidates[0].messages]


BEGUN = {"role": "assistant", "content": "A2 is"}


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        (TALK[:2], TALK, TALK),
        (TALK[:2], [BRIEF, *TALK], [BRIEF, *TALK]),
        ([BRIEF, *TALK[:2]], TALK, [BRIEF, *TALK]),
        (TALK[:2], TALK[2:], TALK),
        (TALK[:2], [TALK[2], *TALK], [*TALK[:2], TALK[2], *TALK]),
        (
            [*TALK[:3], BEGUN],
            [*TALK[:3], {**BEGUN, "content": "A2 is it"}],
            [*TALK[:3], {**BEGUN, "content": "A2 is it"}],
        ),
        ([*TALK[:3], BEGUN], [{**BEGUN, "content": " it"}], [*TALK[:3], {**BEGUN, "content": "A2 is it"}]),
    ],
)
def test_a_prompt_that_ends_with_the_assistant_is_there_once(
    prompt: list[Any], completion: list[Any], expected: list[Any]
) -> None:
    for spell in (list, json.dumps):
        assert example({"prompt": spell(prompt), "completion": spell(completion)}).messages == expected
    if prompt[-1] is BEGUN:
        row = {
            "prompt": prompt,
            "chosen": completion,
            "rejected": [*completion[:-1], {**completion[-1], "content": "A2 is B"}],
        }
        made = ComparisonReader(recognise_comparison(Record(row, "f", 1)), None).read(row)
        assert made.examples[0].messages == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"message_id": "1", "parent_id": None, "role": "prompter", "text": "Q"}, "a row is a single message "),
        ({"role": "user", "content": "Q"}, "a row is a single message "),
        ({"prompt": "Q", "role": "user", "content": "A"}, "if one of role, content is the answer"),
        ({"instruction": "Q", "generation": "A"}, "pass --data.columns.completion generation"),
        ({"prompt": "Q", "model": "m", "reply": "A"}, "if one of model, reply is the answer"),
        ({"messages": {"0": ASKED, "1": ASKED}}, r"`messages` is a column of a whole table .*orient=\"records\""),
        ({"question;answer": "Q;A"}, "the header is one column: its separator may be ';'"),
    ],
)
def test_what_the_columns_may_be_is_said(row: dict[str, Any], message: str) -> None:
    with pytest.raises(PostTrainError, match=message):
        example(row)


@pytest.mark.parametrize("row", [*SHAPES.values(), {"instruction": "Q", "output": "A"}])
def test_notes_of_a_row_do_not_make_it_a_single_message(row: dict[str, Any]) -> None:
    noted = {**row, "role": "assistant", "text": "x"}
    if set(row) & {"chosen", "responses", "response1", "label"}:
        assert _pair(Row(noted)) == _pair(Row(row))
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
    for read in (_sft, _pair, lambda seen: prompt_reader(Record({**seen.aside()}, "f", 1)).example(seen).messages):
        found = []
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


def test_a_list_of_texts_beside_a_prompt_has_a_remedy() -> None:
    with pytest.raises(BadRow, match="write what belongs to the prompt as one text, or rename the column"):
        example({"question": "Q", "answer": "A", "context": ["a", "b"]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "contents": "a"}]}, r"has no `content` \(its keys are role, contents\)"),
        ({"messages": str(ASKED)}, "a Python list that was printed: write it with json.dumps"),
        ({"question": "Q", "answer": 1}, "`answer` is 1, not a string or a list of messages; write it in quotes"),
        (
            {"prompt": "Q", "completion": {"a": 1}},
            "^`completion` is an object, not a string or a .*; write it as text$",
        ),
        ({"prompt": {}, "completion": "A"}, "^`prompt` is an object, not a string or a list of messages; write it as"),
        (
            {"messages": [{"speaker": "user", "text": "Q"}]},
            r"messages\[0\] has no `role` \(its keys are speaker, text\); a message has role and content, or from and",
        ),
        ({"messages": [{}]}, r"messages\[0\] has no `role` \(its keys are none\)"),
        *(
            (
                {"messages": [ASKED[0], {"role": "assistant", "content": content}]},
                rf"content is .*, not a string; {remedy}",
            )
            for content, remedy in (
                (3, "write it in quotes"),
                (True, "write it in quotes"),
                (None, "fill or remove it"),
            )
        ),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        example(row)


@pytest.mark.parametrize("row", [{"messages": ASKED[0]}, {"messages": None}, {"conversations": 3}])
def test_a_conversation_of_another_type_is_said_by_every_reader(row: dict[str, Any]) -> None:
    record = Record(row, "rows.jsonl", 1)
    for read in (recognise, recognise_comparison, prompt_reader):
        with pytest.raises(PostTrainError, match=r"rows\.jsonl:1: `\w+` is [^;]*, not a list of messages; mend it$"):
            read(record)


@pytest.mark.parametrize(
    ("read", "row", "options"),
    [
        *(
            (
                recognise,
                {prompt.title(): "Q", answer.upper(): "A"},
                {"prompt": prompt.title(), "completion": answer.upper()},
            )
            for prompt, answers in ANSWERS.items()
            for answer in answers
        ),
        *((recognise, {name.title(): ASKED}, {"messages": name.title()}) for name in CONVERSATION),
        (recognise, {"Text": "Q"}, {"text": "Text"}),
        *((prompt_reader, {name.title(): "Q", "id": 3}, {"prompt": name.title()}) for name in PROMPT),
        (recognise_comparison, {"Chosen": ASKED, "Rejected": ASKED}, {"chosen": "Chosen", "rejected": "Rejected"}),
        (
            recognise_comparison,
            {"Prompt": "Q", "CHOSEN": "A", "Rejected": "B"},
            {"prompt": "Prompt", "chosen": "CHOSEN", "rejected": "Rejected"},
        ),
    ],
)
def test_columns_that_are_known_but_for_capital_letters_are_named(
    read: Any, row: dict[str, Any], options: dict[str, str]
) -> None:
    with pytest.raises(PostTrainError) as refused:
        read(Record(row, "rows.jsonl", 1))
    assert all(f"--data.columns.{option} {column}" in str(refused.value) for option, column in options.items())
    fields = {recognise: Columns, prompt_reader: PromptColumns, recognise_comparison: PreferenceColumns}[read]
    assert read(Record(row, "rows.jsonl", 1), fields(**options))


@pytest.mark.parametrize("key", REASONING)
@pytest.mark.parametrize("empty", ["", " \n", [], {}])
def test_an_empty_thought_is_none(key: str, empty: Any) -> None:
    said = {"role": "assistant", "content": "<think>R</think>A"}
    assert example({"messages": [ASKED[0], {**said, key: empty}]}).messages == [ASKED[0], said]


def test_ai_is_the_assistant() -> None:
    assert example({"messages": [{"role": "Human", "content": "Q"}, {"role": "AI", "content": "A"}]}).messages == ASKED
