"""What is said of columns that are not recognised, or that belong to another config."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.columns import ASKED, BRIEF, TALK, WORSE, example

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.prompts import PromptColumns, prompt_reader
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.kinds import ANSWERS, CONVERSATION, PROMPT
from lit_posttrain.errors import PostTrainError


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
