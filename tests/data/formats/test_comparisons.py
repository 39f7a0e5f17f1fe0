"""Columns to comparisons: every usual shape of preference data, and rows that say nothing or cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.comparisons import CHOSEN_A, HUMAN, SYSTEM, USER, calling, comparison, said, shown

from lit_posttrain.data.formats.comparisons import PreferenceColumns
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.errors import PostTrainError


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": f"{HUMAN} A", "rejected": f"{HUMAN} B"}, CHOSEN_A),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, CHOSEN_A),
        ({"prompt": HUMAN[:-12], "chosen": "A", "rejected": "B"}, CHOSEN_A),
        ({"prompt": "Q", "chosen": [USER, said("A")], "rejected": [USER, said("B")]}, CHOSEN_A),
        ({"prompt": [USER], "chosen": [said("A")], "rejected": [said("B")]}, CHOSEN_A),
        ({"chosen": [USER, said("A")], "rejected": [USER, said("B")]}, CHOSEN_A),
        ({"prompt": HUMAN, "chosen": " A", "rejected": " B"}, [(" A", *CHOSEN_A[0][1:]), (" B", *CHOSEN_A[1][1:])]),
        ({"prompt": "Human: Q\n\nAssistant:", "chosen": "A", "rejected": "B"}, CHOSEN_A),
        ({"prompt": "Q", "chosen": json.dumps([USER, said("A")]), "rejected": json.dumps([USER, said("B")])}, CHOSEN_A),
        ({"prompt": "Q", "chosen": '[{"a": 1}]', "rejected": "B"}, [('[{"a": 1}]', {"rank": 0.0}), CHOSEN_A[1]]),
        ({"prompt": "Q", "output_1": "A", "output_2": "B", "label": "1"}, CHOSEN_A),
        ({"instruction": "Q", "input": "", "response1": "B", "response2": "A", "annotator1": 2}, CHOSEN_A),
        (
            {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 1, "annotator2": 0, "annotator3": 2},
            [("A", {"rank": 0.0}), ("B", {"rank": 1.0, "flip_prob": 0.5})],
        ),
        (
            {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 2, "annotator2": 2, "annotator3": 0},
            [("B", {"rank": 0.0}), ("A", {"rank": 1.0, "flip_prob": 0.166667})],
        ),
        ({"input": "Q", "output_1": "A", "output_2": "B", "label": 1}, CHOSEN_A),
        (
            {
                "messages": [{"role": "prompter", "content": "Q"}],
                "responses": [{"rank": 1, "text": "B"}, {"rank": 0, "text": "A"}],
            },
            [("B", {"rank": 1.0}), ("A", {"rank": 0.0})],
        ),
        (
            {"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [1, 1, 3]},
            [("A", {"rank": 0.0}), ("B", {"rank": 0.0}), ("C", {"rank": 1.0})],
        ),
        ({"prompt": "Q", "completion": "A", "label": True}, [("A", {"good": 1.0})]),
        ({"prompt": "Q", "completion": "A", "label": "bad"}, [("A", {"good": 0.0})]),
    ],
)
def test_recognised_by_columns(row: dict[str, Any], expected: list[tuple[str, dict[str, float]]]) -> None:
    made = comparison(row)
    assert made.prompt == [USER]
    assert shown(made) == expected


def test_named_columns() -> None:
    row = {"q": "Q", "gut": "A", "schlecht": "B"}
    columns = PreferenceColumns(prompt="q", chosen="gut", rejected="schlecht")
    assert shown(comparison(row, columns)) == CHOSEN_A
    half = {"prompt": "Q", "gut": "A", "rejected": "B"}
    assert comparison(half, PreferenceColumns(chosen="gut", rejected="rejected")).prompt == [USER]
    judged = PreferenceColumns(prompt="q", first="gut", second="schlecht", labels=["wer"])
    assert shown(comparison({**row, "wer": 2}, judged))[0][0] == "B"
    with pytest.raises(PostTrainError, match=r"pairs\.jsonl:1: no column `guut` .* did you mean `gut`"):
        comparison(row, PreferenceColumns(prompt="q", chosen="guut", rejected="schlecht"))
    with pytest.raises(PostTrainError, match="columns not recognised as preferences: q, gut"):
        comparison(row)


@pytest.mark.parametrize(
    ("row", "named", "responses"),
    [
        ({"prompt": "a", "chosen": "b", "rejektd": "c"}, {"rejected": "rejektd"}, ["b", "c"]),
        ({"prompt": "a", "responses": ["b", "c"], "places": [1, 0]}, {"ranks": "places"}, ["b", "c"]),
        ({"prompt": "a", "response1": "b", "response2": "c", "winner": 2}, {"labels": ["winner"]}, ["c", "b"]),
        ({"prompt": "a", "completion": "b", "score": True}, {"good": "score"}, ["b"]),
    ],
)
def test_what_is_named_completes_what_is_recognised(
    row: dict[str, Any], named: dict[str, Any], responses: list[str]
) -> None:
    with pytest.raises((PostTrainError, BadRow), match=f"--data.columns.{next(iter(named))}"):
        comparison(row)
    made = comparison(row, PreferenceColumns(**named))
    assert [candidate.messages[-1]["content"] for candidate in made.candidates] == responses


def test_inputs_and_system_prompts_belong_to_the_prompt() -> None:
    pair = {"instruction": "Q", "input": "more", "system": "S", "chosen": "A", "rejected": "B"}
    ranked = {"prompt": "Q", "context": "more", "system": "S", "responses": ["A", "B"], "ranks": [0, 1]}
    judged = {"instruction": "Q", "input": "more", "system": "S", "response1": "A", "response2": "B", "annotator1": 1}
    expected = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q\n\nmore"}]
    assert [comparison(row).prompt for row in (pair, ranked, judged)] == [expected] * 3
    alone = comparison({"input": "Q", "output_1": "A", "output_2": "B", "label": 1}, PreferenceColumns(prompt="input"))
    assert alone.prompt == [USER]


def test_majority_takes_votes_as_certain() -> None:
    row = {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 2, "annotator2": 2, "annotator3": 1}
    assert shown(comparison(row, annotators="majority")) == [("B", {"rank": 0.0}), ("A", {"rank": 1.0})]
    with pytest.raises(NothingToLearn, match="no preference"):
        comparison({**row, "annotator1": 0}, annotators="majority")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (calling("f"), calling("g")),
        (calling("f", x=1), calling("f", x=2)),
        ({**said("A"), "reasoning_content": "so"}, {**said("A"), "reasoning_content": "no"}),
        ({**said("A"), "thinking": "so"}, said("A")),
        (said("A"), {**said("A"), "tool_calls": calling("f")["tool_calls"]}),
        (said("A"), {**said("A"), "name": "bob"}),
    ],
)
def test_responses_are_equal_only_in_all_they_hold(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert len(comparison({"prompt": "Q", "chosen": [first], "rejected": [second]}).candidates) == 2
    assert len(comparison({"chosen": [USER, first], "rejected": [USER, second]}).candidates) == 2
    ranked = [{"rank": 0, "content": [first]}, {"rank": 1, "content": [second]}]
    assert [c.messages for c in comparison({"prompt": "Q", "responses": ranked}).candidates] == [[first], [second]]
    whole = {"chosen": [USER, first], "rejected": [USER, first]}
    for row in ({"prompt": "Q", "chosen": [first], "rejected": [first]}, whole):
        with pytest.raises(NothingToLearn, match="both responses are the same"):
            comparison(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": [SYSTEM, USER, said("A")], "rejected": [SYSTEM, USER, said("B")]},
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, said("A")], "rejected": [SYSTEM, USER, said("B")]},
        {"prompt": [SYSTEM, USER], "chosen": [USER, said("A")], "rejected": [said("B")]},
        {"prompt": "Q", "chosen": [SYSTEM, said("A")], "rejected": [SYSTEM, said("B")]},
        {"prompt": "Q", "chosen": [SYSTEM, USER, said("A")], "rejected": [said("B")]},
        {"chosen": [SYSTEM, USER, said("A")], "rejected": [SYSTEM, USER, said("B")]},
        {"prompt": "Q\n", "system": "S", "chosen": [USER, said("A")], "rejected": [USER, said("B")]},
        {"prompt": "Q", "system_prompt": "S", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "response1": [SYSTEM, USER, said("A")], "response2": [SYSTEM, USER, said("B")], "label": 1.0},
    ],
)
def test_a_system_turn_belongs_to_the_prompt_wherever_it_stands(row: dict[str, Any]) -> None:
    made = comparison(row)
    assert [(m["role"], m["content"].strip()) for m in made.prompt] == [("system", "S"), ("user", "Q")]
    assert shown(made) == CHOSEN_A


def test_a_prompt_may_be_one_turn_of_those_that_the_sides_begin_with() -> None:
    turns = [USER, said("first"), {"role": "user", "content": "Q2"}]
    sides = {"chosen": [*turns, said("A")], "rejected": [*turns, said("B")]}
    for prompt in ("Q", "Q2", " Q2 "):
        made = comparison({"prompt": prompt, **sides})
        assert (made.prompt, shown(made)) == (turns, CHOSEN_A)
    with pytest.raises(BadRow, match=r"`chosen` begins with 'Q' where `prompt` is 'Other'; mend it, or remove one"):
        comparison({"prompt": "Other", **sides})
    other = [{"role": "system", "content": "T"}, USER]
    with pytest.raises(BadRow, match="`prompt` and `chosen` have different system prompts"):
        comparison({"prompt": other, "chosen": [SYSTEM, USER, said("A")], "rejected": [SYSTEM, said("B")]})


@pytest.mark.parametrize("number", [int, float, str, lambda n: f"{n}.0"])
def test_whole_numbers_of_any_kind(number: Any) -> None:
    ranks = {"prompt": "Q", "responses": ["A", "B"], "ranks": [number(1), number(2)]}
    assert shown(comparison(ranks)) == [("A", {"rank": 0.0}), ("B", {"rank": 1.0})]
    within = [{"text": "A", "rank": number(0)}, {"text": "B", "rank": number(1)}]
    assert shown(comparison({"prompt": "Q", "responses": within})) == [("A", {"rank": 0.0}), ("B", {"rank": 1.0})]
    assert shown(comparison({"prompt": "Q", "output_1": "B", "output_2": "A", "label": number(2)})) == CHOSEN_A
    assert shown(comparison({"prompt": "Q", "completion": "A", "label": number(1)})) == [("A", {"good": 1.0})]
    assert shown(comparison({"prompt": "Q", "completion": "B", "label": number(0)})) == [("B", {"good": 0.0})]
    assert shown(comparison({"prompt": "Q", "completion": "B", "label": number(-1)})) == [("B", {"good": 0.0})]
    cells = {"prompt": "Q", "responses": json.dumps(["A", "B"]), "ranks": json.dumps([number(1), number(2)])}
    assert shown(comparison(cells)) == [("A", {"rank": 0.0}), ("B", {"rank": 1.0})]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": f"{HUMAN} A", "rejected": f"{HUMAN} A"}, "equal responses"),
        (
            {"prompt": "Q", "chosen": [SYSTEM, USER, said("A")], "rejected": [USER, said("B")]},
            "no shared prompt",
        ),
        ({"prompt": "Q", "chosen": "A", "rejected": "A "}, "equal responses"),
        ({"prompt": [USER], "chosen": [said("A")], "rejected": [said(" ")]}, "empty response"),
        ({"chosen": f"{HUMAN} A", "rejected": "\n\nHuman: other\n\nAssistant: B"}, "no shared prompt"),
        ({"chosen": f"{HUMAN} A\n\nAssistant: C", "rejected": f"{HUMAN} B"}, "no shared prompt"),
        ({"chosen": f"{HUMAN} A", "rejected": f"{HUMAN}  "}, "empty response"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [1, 1]}, "all tied"),
    ],
)
def test_rows_that_say_nothing_are_no_errors(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(NothingToLearn) as caught:
        comparison(row)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "responses": ["A"], "ranks": [0]}, "1 responses; a comparison needs two"),
        ({"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [0, 2, 3]}, "have gaps"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [2, 3]}, "have gaps"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [0]}, "1 ranks for 2 responses"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [0, 0.5]}, "not whole numbers"),
        ({"prompt": "Q", "responses": ["A", {"score": 1}], "ranks": [0, 1]}, r"responses\[1\] has none of text"),
        ({"prompt": "Q", "completion": "A", "label": "so-so"}, "neither good nor bad"),
        ({"input": "Q", "output_1": "A", "output_2": "B", "label": 3}, "labels are 1 .* 2 .* or 0"),
        ({"prompt": "Q", "chosen": [USER], "rejected": "B"}, "must begin with the assistant's turn"),
        ({"prompt": None, "chosen": "A", "rejected": "B"}, "`prompt` is null"),
    ],
)
def test_bad_rows_say_what_and_how(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message) as caught:
        comparison(row)
    assert not isinstance(caught.value, NothingToLearn)
