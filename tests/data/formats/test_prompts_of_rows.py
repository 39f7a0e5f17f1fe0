"""The prompt of a row is the same for every method, whatever its answers look like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.prompts import PromptColumns, prompt_reader
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.kinds import COMPARED, RIGHT
from lit_posttrain.data.rows.row import Row
from lit_posttrain.types import PromptRecord

ASKED = [{"role": "user", "content": "what is it"}]

SYSTEM = {"role": "system", "content": "S"}
HI, HELLO, MORE = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, ASKED[0]
TURNS = [HI, HELLO, MORE]
PAIRS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "one turn": ({"prompt": "Hi", "chosen": "A", "rejected": "B"}, [HI]),
    "system in the sides": ({"prompt": "Hi", "chosen": [SYSTEM, HI], "rejected": [SYSTEM, HI]}, [SYSTEM, HI]),
    "the first turn of several": (
        {"prompt": "Hi", "chosen": [HI, HELLO, MORE], "rejected": [HI, HELLO, MORE]},
        [HI, HELLO, MORE],
    ),
    "a transcript": ({"prompt": "\n\nHuman: Hi", "chosen": "\n\nAssistant: A", "rejected": "\n\nAssistant: B"}, [HI]),
    "with input": (
        {"instruction": "Hi", "input": "you", "chosen": "A", "rejected": "B"},
        [{**HI, "content": "Hi\n\nyou"}],
    ),
    "prompt with context": (
        {"prompt": "Hi", "context": "you", "chosen": "A", "rejected": "B"},
        [{**HI, "content": "Hi\n\nyou"}],
    ),
    "history": (
        {"prompt": "Hi", "history": [["a", "b"]], "chosen": "A", "rejected": "B"},
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, HI],
    ),
    "judged": ({"prompt": "Hi", "response1": [SYSTEM, HI], "response2": [SYSTEM, HI], "label": 1}, [SYSTEM, HI]),
    "ranked": ({"prompt": "Hi", "responses": [[HI], [HI]], "ranks": [1, 2]}, [HI]),
    "whole": ({"chosen": [SYSTEM, HI], "rejected": [SYSTEM, HI]}, [SYSTEM, HI]),
}


def _answered(row: dict[str, Any]) -> dict[str, Any]:
    """With an answer of the assistant behind the turns of each side."""
    made = dict(row)
    for column, text in (("chosen", "A"), ("rejected", "B"), ("response1", "A"), ("response2", "B")):
        if isinstance(made.get(column), list):
            made[column] = [*made[column], {"role": "assistant", "content": text}]
    if "responses" in made:
        both = zip(made["responses"], "AB", strict=True)
        made["responses"] = [{"content": [*turns, {"role": "assistant", "content": text}]} for turns, text in both]
    return made


@pytest.mark.parametrize("name", PAIRS)
def test_every_method_asks_the_same_of_a_row(name: str) -> None:
    """What preference methods learn the answer to is what on-policy methods and `generate` ask."""
    row, expected = _answered(PAIRS[name][0]), PAIRS[name][1]
    record = Record(row, "rows.jsonl", 1)
    assert recognise_comparison(record).read(row).prompt == expected
    reader = prompt_reader(record)
    seen = Row(row)
    assert reader.example(seen).messages == expected
    assert PromptRecord(*json.loads(reader.read(row).record)).messages == expected
    kept = {"chosen", "rejected", "response1", "responses"} & set(row)
    assert kept <= set(seen.rest())  # which `generate` writes down again


@pytest.mark.parametrize("answer", [*RIGHT, None])
@pytest.mark.parametrize("value", ["3 4", ["3 4"], 3, {"a": 1}])
def test_an_input_beside_a_prompt_and_what_is_right_is_for_rewards(value: Any, answer: str | None) -> None:
    row = {"prompt": "what is it", "input": value, **({answer: ["7"]} if answer else {})}
    reader = prompt_reader(Record(row, "rows.jsonl", 1))
    made, asked = reader.read(row), answer is None and isinstance(value, str)
    record = PromptRecord(*json.loads(made.record))
    assert (record.messages == ASKED) is not asked
    assert record.columns == row
    assert made.notes == ([] if asked else ["with a column `input` that is no part of the prompt"])


@pytest.mark.parametrize("answer", ["completion", "response"])
@pytest.mark.parametrize("said", ["Hello", None, 3])
def test_a_transcript_is_read_whatever_answer_stands_beside_it(answer: str, said: Any) -> None:
    rows = [{"prompt": "\n\nHuman: Hi\n\nAssistant:", answer: what} for what in ("Hello", said)]
    reader = prompt_reader(Record(rows[0], "rows.jsonl", 1))
    assert [reader.example(Row(row)).messages for row in rows] == [[HI], [HI]]


@pytest.mark.parametrize("verdict", COMPARED["good"])
@pytest.mark.parametrize("answer", COMPARED["completion"])
def test_what_kto_learns_to_answer_is_what_is_asked(answer: str, verdict: str) -> None:
    row = {"prompt": "Hi", "input": "you", answer: "A", verdict: True}
    record = Record(row, "rows.jsonl", 1)
    expected = [{**HI, "content": "Hi\n\nyou"}]
    assert recognise_comparison(record).read(row).prompt == expected
    assert prompt_reader(record).example(Row(row)).messages == expected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "input": "you", "completion": "A"},
        {"prompt": "Hi", "input": "you", "response": "A"},
        {"instruction": "Hi", "input": "you", "output": "A"},
        {"prompt": "Hi", "context": "you", "completion": "A"},
    ],
)
def test_what_sft_learns_to_answer_is_what_is_asked(row: dict[str, Any]) -> None:
    record = Record(row, "rows.jsonl", 1)
    assert recognise(record).example(row).messages[:1] == [{**HI, "content": "Hi\n\nyou"}]
    assert prompt_reader(record).example(Row(row)).messages == [{**HI, "content": "Hi\n\nyou"}]


WHOLE = [*TURNS, {"role": "assistant", "content": "A"}]
CONTINUED: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "a system turn": ({"prompt": "Hi", "completion": [SYSTEM, HI, HELLO]}, [SYSTEM, HI]),
    "without the context": ({"prompt": "Hi", "context": "you", "completion": [HI, HELLO]}, [HI]),
    "without the input": ({"instruction": "Hi", "input": "you", "output": [HI, HELLO]}, [HI]),
    "the last of several turns": ({"prompt": MORE["content"], "completion": WHOLE}, TURNS),
    "one more question": ({"prompt": TURNS[:2], "completion": WHOLE[2:]}, TURNS),
    "no answer yet": ({"prompt": "Hi", "completion": ""}, [HI]),
    "words that are continued": (
        {"prompt": [HI, HELLO], "completion": [HI, {**HELLO, "content": "Hello you"}]},
        [HI, HELLO],
    ),
}


@pytest.mark.parametrize("spell", [list, json.dumps])
@pytest.mark.parametrize("name", CONTINUED)
def test_what_a_completion_begins_with_is_asked_too(name: str, spell: Any) -> None:
    row, expected = CONTINUED[name]
    row = {column: spell(value) if isinstance(value, list) else value for column, value in row.items()}
    reader, seen = prompt_reader(Record(row, "rows.jsonl", 1)), Row(row)
    made = reader.example(seen)
    assert (made.messages, seen.rest().keys() >= {*row} & {"completion", "output"}) == (expected, True)
    if row.get("completion") == "":
        return
    example = recognise(Record(row, "rows.jsonl", 1)).example(row)
    begun = len(expected) - bool(made.continued)
    assert example.messages[:begun] == expected[:begun]
    assert example.continued == made.continued
    if "completion" in row and name != "one more question":
        kto = {**row, "label": True}
        assert recognise_comparison(Record(kto, "rows.jsonl", 1)).read(kto).prompt == expected
        assert prompt_reader(Record(kto, "rows.jsonl", 1)).example(Row(kto)).messages == expected


SPELLED: dict[str, Any] = {
    "text": "Hi",
    "a message": HI,
    "one turn": [HI],
    "with a system prompt": [SYSTEM, HI],
    "with a system prompt in JSON": json.dumps([SYSTEM, HI]),
    "one turn in JSON": json.dumps([HI]),
    "several turns": [HI, HELLO, HI],
}


@pytest.mark.parametrize("context", ["you", ["you", "me"], [HI], {"a": 1}, [["Title", ["a", "b"]]]])
@pytest.mark.parametrize("name", SPELLED)
def test_a_context_is_added_however_the_prompt_is_written(name: str, context: Any) -> None:
    row = {"prompt": SPELLED[name], "context": context}
    texts = {"completion": "A"} if isinstance(SPELLED[name], str) else {"completion": [HELLO]}
    sft, pair = {**row, **texts}, {**row, "chosen": "A", "rejected": "B"}

    def asked(row: dict[str, Any]) -> list[list[dict[str, Any]]]:
        record = Record(row, "rows.jsonl", 1)
        answer = recognise(record).example if row is sft else recognise_comparison(record).read
        learned: Any = answer(row)
        turns = learned.messages[:-1] if row is sft else learned.prompt
        seen = Row(row)
        found = [turns, prompt_reader(record).example(seen).messages]
        left = "Hi" in (message["content"] for message in turns)
        assert seen.notes == [*seen.notes[:-1], "with a column `context` that is no part of the prompt"] or not left
        return found

    for kind in (sft, pair):
        if context in (["you", "me"], [HI]) and name != "several turns":
            with pytest.raises(BadRow, match="`context` is a list, not a string"):
                asked(kind)
            with pytest.raises(BadRow, match="`context` is a list, not a string"):
                prompt_reader(Record(kind, "rows.jsonl", 1)).example(Row(kind))
            continue
        added = isinstance(context, str) and name != "several turns"
        expected = [HI, HELLO, HI] if name == "several turns" else [{**HI, "content": "Hi\n\nyou" if added else "Hi"}]
        expected = [SYSTEM, *expected] if "system" in name else expected
        assert asked(kind) == [expected, expected]


def test_sides_that_cannot_be_used_leave_the_prompt() -> None:
    first = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    reader = prompt_reader(Record(first, "rows.jsonl", 1))
    unusable: list[dict[str, object]] = [
        {"prompt": "Hi"},
        {"prompt": "Hi", "chosen": "", "rejected": 3},
        {"prompt": "Hi", "chosen": None, "rejected": []},
    ]
    for later in unusable:
        assert reader.example(Row(later)).messages == [HI]
    other = {"prompt": "Hi", "chosen": [MORE, HELLO], "rejected": [MORE, HELLO]}
    with pytest.raises(BadRow, match="`chosen` begins with 'what is it' where `prompt` is 'Hi'"):
        reader.example(Row(other))


def test_a_named_prompt_is_all_of_it() -> None:
    row = {"question": "Q", "context": "more", "formatted_prompt": "Hi", "chosen": "A", "rejected": "B"}
    record = Record(row, "rows.jsonl", 1)
    named = recognise_comparison(record, PreferenceColumns(prompt="formatted_prompt"))
    assert named.read(row).prompt == [HI]
    assert prompt_reader(record, PromptColumns(prompt="formatted_prompt")).example(Row(row)).messages == [HI]
    assert prompt_reader(record).example(Row(row)).messages == [{**HI, "content": "Q\n\nmore"}]


@pytest.mark.parametrize("column", ["messages", "prompt"])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_prompt_may_have_empty_turns_of_the_assistant(column: str, as_text: bool) -> None:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    asked = [turn("user", "a"), turn("assistant", " "), turn("user", "b")]
    for given in (asked, [*asked, turn("assistant", "")]):
        row = {column: json.dumps(given) if as_text else given}
        assert prompt_reader(Record(row, "f", 1)).example(Row(row)).messages == asked
    empty = {column: [turn("assistant", "")]}
    with pytest.raises(BadRow, match=r"is empty: nothing is asked|is an empty list"):
        prompt_reader(Record(empty, "f", 1)).example(Row(empty))
