"""Messages from text: transcripts and JSON, and text that only looks like them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from helpers.comparisons import CHOSEN_A, HUMAN, SYSTEM, USER, comparison, said, shown

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.data.formats.conversations import Columns, recognise
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.turns import JSON_TEXT, MESSAGES_AS_TEXT, TRANSCRIPT


@pytest.mark.parametrize(
    ("answer", "messages"),
    [
        ('[{"from": "Ghent", "to": "Bruges"}]', None),
        ('[{"role": "admin", "content": "x"}]', None),
        ('[{"role": "user"}]', None),
        ("[{not json", None),
        ("\n\nHuman: that is how it begins", None),
        ("Assistant: A", None),
        ('[{"role": "assistant", "content": "A"}]', [said("A")]),
        ("\n\nAssistant: A", [said("A")]),
    ],
)
def test_a_response_is_read_as_more_than_text_only_where_it_must_be(
    answer: str, messages: list[dict[str, Any]] | None
) -> None:
    row = Row({"prompt": "Q", "chosen": answer, "rejected": "B"})
    made = recognise_comparison(Record({**row}, "pairs.jsonl", 1)).read(row)
    assert made.candidates[0].messages == (messages or [said(answer)])
    assert bool(row.notes) == (messages is not None)


@pytest.mark.parametrize(
    ("prompt", "roles"),
    [
        ("Hello.\n<extra_id_1>Assistant\nHello?\n<extra_id_1>User\nBye.", ["user", "assistant", "user"]),
        (
            "<extra_id_1>User\nHello.\n<extra_id_1>Assistant\nHello?\n<extra_id_1>User\nBye.",
            ["user", "assistant", "user"],
        ),
        ("What does this template mean?\n<extra_id_1>User\n{question}", ["user"]),
        ("<extra_id_1>User\nHello.", ["user"]),
        ("Hello." + " " * 200_000, ["user"]),  # a search that begins anew at each space would take minutes
    ],
)
def test_marks_are_turns_only_if_both_speak(prompt: str, roles: list[str]) -> None:
    row = Row({"prompt": prompt, "chosen": "A", "rejected": "B"})
    made = recognise_comparison(Record({**row}, "pairs.jsonl", 1)).read(row)
    assert [one["role"] for one in made.prompt] == roles
    assert "<extra_id_1>" not in str(made.prompt) or made.prompt[0]["content"] == prompt


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("Human: beings are odd", None),
        ("Human: are they?\n\nHuman: yes", None),
        ("Assistant: you are one", None),
        ("Human: Q\n\nAssistant:", [USER]),
        ("\n\nHuman: Q", [USER]),
        ("Human: Q\n\nAssistant: Well,", [USER, said("Well,")]),
    ],
)
def test_a_prompt_is_a_transcript_only_if_both_speak(prompt: str, messages: list[dict[str, Any]] | None) -> None:
    row = Row({"prompt": prompt, "chosen": "A", "rejected": "B"})
    made = recognise_comparison(Record({**row}, "pairs.jsonl", 1)).read(row)
    assert made.prompt == (messages or [{"role": "user", "content": prompt}])
    assert row.notes == ([TRANSCRIPT] if messages else [])


SPELLED: dict[str, Callable[[Any], str]] = {
    "json": json.dumps,
    "indented": lambda messages: json.dumps(messages, indent=2),
    "spaced": lambda messages: "[ " + json.dumps(messages)[1:],
    "lines": lambda messages: "\n" + json.dumps(messages, separators=(",\n", ":\n")),
}


@pytest.mark.parametrize("name", SPELLED)
def test_messages_in_json_text_however_it_is_written(name: str) -> None:
    spell = SPELLED[name]
    row = {"prompt": spell([USER]), "chosen": spell([said("A")]), "rejected": spell([said("B")])}
    made = comparison(row)
    assert (made.prompt, shown(made)) == ([USER], CHOSEN_A)
    assert prompt_reader(Record(row, "rows.jsonl", 1)).example(Row(row)).messages == [USER]
    pair = Row({"prompt": spell([SYSTEM, USER]), "completion": spell([said("A")])})
    assert recognise(Record({**pair}, "rows.jsonl", 1)).example(pair.aside()).messages == [SYSTEM, USER, said("A")]
    whole = {"messages": spell([USER, said("A")])}
    assert recognise(Record(whole, "rows.jsonl", 1)).example(whole).messages == [USER, said("A")]


@pytest.mark.parametrize(
    "text",
    [
        repr([USER]),
        repr([{"from": "human", "value": "Q"}]),
        "[ " + repr([{"content": "Q", "role": "user"}])[1:],
        json.dumps([USER])[:-1],
        json.dumps([USER, said("A")])[:-5],
        f"{[USER]}\n",
        json.dumps([USER]).replace(", ", ",, "),
        f"[{USER}\n {USER}]",
    ],
)
def test_messages_that_are_no_json_are_not_what_somebody_said(text: str) -> None:
    rows = [{"prompt": text, "chosen": "A", "rejected": "B"}, {"prompt": "Q", "chosen": text, "rejected": "B"}]
    for row in rows:
        with pytest.raises(BadRow, match=r"begins like a list of messages and is not valid JSON .* json\.dumps"):
            comparison(row)
    for row in ({"prompt": text, "completion": "A"}, {"prompt": json.dumps([USER]), "completion": text}):
        with pytest.raises(BadRow, match="begins like a list of messages"):
            recognise(Record(row, "rows.jsonl", 1)).example(row)
    row = {"prompt": text}
    with pytest.raises(BadRow, match="begins like a list of messages"):
        prompt_reader(Record(row, "rows.jsonl", 1)).example(Row(row))


MESSAGES = json.dumps([USER, said("A")])


@pytest.mark.parametrize(
    "text",
    [
        '[{"from": "SFO", "to": "LAX"}]\nCheapest?',
        "[{'from': 'SFO', 'to': 'LAX'}]",
        '[{"from": "SFO", "to": "LAX"',
        '[{"role": …}, …]\nSummarise this chat.',
        '[{"role": ..., "content": ...}]',
        "[{'role': 'user', …}] What is wrong with this?",
        "[{'role': 'admin', 'content': 'x'}]",
        f"{MESSAGES}\nSummarise this chat.",
        f"{MESSAGES} or [1]",
        f"{[USER]}\nWrite this as JSON.",
        "[{'content': 'a', 'size': 3}]",
        "[{'content': '\\d'}] is what?",
    ],
)
def test_what_begins_like_messages_and_goes_on_is_what_somebody_said(text: str) -> None:
    made = comparison({"prompt": text, "chosen": f"{text} A", "rejected": "B"})
    assert made.prompt == [{"role": "user", "content": text}]
    assert shown(made)[0][0] == f"{text} A"
    row = {"prompt": text, "completion": text}
    expected = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    assert recognise(Record(row, "rows.jsonl", 1)).example(row).messages == expected
    assert prompt_reader(Record({"prompt": text}, "rows.jsonl", 1)).example(Row(row)).messages == expected[:1]


@pytest.mark.parametrize("answer", [MESSAGES, str([USER, said("A")]), MESSAGES[:-1], '[{"role": "user", "content": "'])
@pytest.mark.parametrize(("prompt", "completion"), [("prompt", "completion"), ("instruction", "output"), ("q", "a")])
def test_an_answer_to_a_text_may_show_messages(prompt: str, completion: str, answer: str) -> None:
    row = Row({prompt: "Write a dialogue as JSON", completion: answer})
    columns = Columns(prompt=prompt, completion=completion)
    seen = row.aside()
    example = recognise(Record({**row}, "rows.jsonl", 1), columns).example(seen)
    assert example.messages[-1] == {"role": "assistant", "content": answer}
    assert example.text is not None
    assert example.text[1] == answer
    assert seen.notes == [MESSAGES_AS_TEXT]


@pytest.mark.parametrize("asked", ["Q", USER, [USER]])
@pytest.mark.parametrize("answer", [[said("A")], [USER, said("A")], [SYSTEM, USER, said("A")]])
def test_an_answer_in_json_text_is_read_as_in_every_method(answer: list[dict[str, Any]], asked: Any) -> None:
    sft = Row({"prompt": asked, "completion": json.dumps(answer)})
    made = recognise(Record({**sft}, "rows.jsonl", 1)).example(sft)
    worse = [*answer[:-1], said("B")]
    row = Row({"prompt": asked, "chosen": json.dumps(answer), "rejected": json.dumps(worse)})
    pair = recognise_comparison(Record({**row}, "rows.jsonl", 1)).read(row)
    assert made.messages == [*pair.prompt, *pair.candidates[0].messages]
    assert made.messages[-2:] == [USER, said("A")]
    assert made.text is None
    assert set(sft.notes) == set(row.notes) == {JSON_TEXT}
    assert prompt_reader(Record({"prompt": asked}, "f", 1)).example(Row({"prompt": asked})).messages == [USER]


def test_what_belongs_to_a_prompt_does_so_however_the_answer_is_written() -> None:
    row = {"prompt": "Q", "context": "C", "completion": [said("A")]}
    example = recognise(Record(row, "rows.jsonl", 1)).example(row)
    assert example.messages == [{"role": "user", "content": "Q\n\nC"}, said("A")]


def test_a_column_of_conversations_holds_messages_whatever_is_asked() -> None:
    row = {"prompt": "Q", "messages": json.dumps([said("A")])}
    columns = Columns(prompt="prompt", completion="messages")
    assert recognise(Record(row, "rows.jsonl", 1), columns).example(row).messages[-1] == said("A")


def test_transcripts_of_windows_are_transcripts() -> None:
    first, second = (f"{HUMAN} {text}".replace("\n", "\r\n") for text in "AB")
    asked = {"prompt": HUMAN.replace("\n", "\r\n"), "chosen": "A", "rejected": "B"}
    for row in ({"chosen": first, "rejected": second}, asked):
        made = comparison(row)
        assert (made.prompt, shown(made)) == ([USER], CHOSEN_A)
    assert comparison({**asked, "prompt": "a\r\nb"}).prompt[0]["content"] == "a\r\nb"
