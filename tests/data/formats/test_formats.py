"""Columns to conversations: every usual shape, named columns, and rows that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.columns import ASKED, BRIEF, TALK, WORSE, example, pair, sft

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.example import Example
from lit_posttrain.data.formats.prompts import PromptColumns, prompt_reader
from lit_posttrain.data.modules.preference import ComparisonReader
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError


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
    for row, read in zip(learned, (sft, pair), strict=True):
        seen = Row(row)
        assert read(seen) == [{"role": "user", "content": begun}, ASKED[1]]
        assert seen.unread == ([name] if begun == "Q" else [])
    kto = {**asked, "completion": whole, "label": True}
    assert pair(Row(kto)) == [{"role": "user", "content": begun}, ASKED[1]]


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
