"""Marks of single responses: expected values by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.judges import ScriptedBackend, choice, item, opinion, parts, question

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.backend import Call, CallFailed, Reply
from lit_posttrain.judges.building import judge_of
from lit_posttrain.judges.judge import decision_id
from lit_posttrain.judges.kinds.criteria import as_criteria, read_criteria
from lit_posttrain.judges.kinds.rubric import last_object
from lit_posttrain.judges.spec import JudgeSpec

CRITERIA: list[dict[str, Any]] = [
    {"name": "clear", "description": "It is easy to follow.", "weight": 3},
    {"name": "short", "description": "It has no needless word.", "scale": [0, 10]},
]


def marked(**marks: Any) -> Reply:
    return Reply(json.dumps({name: {"reason": f"why {name}", "mark": mark} for name, mark in marks.items()}))


def test_the_expected_mark() -> None:
    def script(call: Call) -> Reply:
        good = parts(call)["response"] == "good"
        return choice(**{"7": 0.2, "8": 0.6}) if good else choice(**{"0": 0.4, "9": 0.4})

    said, backend = opinion(script, item("bad", "good"), kind="score")
    assert said.scores == pytest.approx([4.5, (0.2 * 7 + 0.6 * 8) / 0.8])
    assert (said.outcome, said.ranks, said.probability, said.calls) == ("verdict", [1, 0], None, 2)
    assert said.criteria == {"score": said.scores}
    assert backend.calls[0].choices == tuple("0123456789")


def test_a_single_response_is_marked() -> None:
    said, _ = opinion(lambda call: choice(**{"3": 1.0}), item("only"), kind="score")
    assert (said.scores, said.ranks) == ([3.0], [0])


def test_the_mean_over_drawn_principles() -> None:
    def script(call: Call) -> Reply:
        return choice(**{"9": 1.0}) if "does what the person asked" in question(call) else choice(**{"4": 1.0})

    said, _ = opinion(script, item("x", "y"), kind="score", principles=5)
    assert said.scores == [5.0, 5.0]


def test_a_rubric_weighs_its_criteria(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"criteria": CRITERIA}))

    def script(call: Call) -> Reply:
        return marked(clear=5, short=3) if parts(call)["response"] == "x" else marked(clear=2, short=10)

    said, backend = opinion(script, item("x", "y"), kind="rubric", criteria=str(tmp_path / "c.json"))
    assert said.scores == pytest.approx([(3 * 1.0 + 0.3) / 4, (3 * 0.25 + 1.0) / 4])
    assert said.criteria == {"clear": [5.0, 2.0], "short": [3.0, 10.0]}
    assert said.ranks == [0, 1]
    assert "(response 1) clear: why clear\nshort: why short" in said.reason
    schema = backend.calls[0].schema
    assert schema is not None
    assert list(schema["properties"]["clear"]["properties"]) == ["reason", "mark"]  # reason before verdict
    assert schema["properties"]["short"]["properties"]["mark"]["enum"] == list(range(11))
    assert schema["required"] == ["clear", "short"]


def test_without_criteria_principles_are_marked() -> None:
    def script(call: Call) -> Reply:
        assert call.schema is not None
        return marked(**{name: 5 if name == "honest" else 1 for name in call.schema["properties"]})

    said, backend = opinion(script, item("x", "y"), kind="rubric")
    assert len(backend.calls) == 2
    assert said.scores == pytest.approx([0.2, 0.2])
    said, backend = opinion(script, item("x", "y"), kind="rubric", principles=5)
    assert len(backend.calls) == 10
    assert said.scores == pytest.approx([0.2, 0.2])


def test_criteria_of_a_column() -> None:
    said, _ = opinion(
        lambda call: marked(**{"criterion 1": 5, "kind": 1}),
        item("x", "y", rubric=json.dumps(["It is right.", {"name": "kind", "text": "It is kind.", "weight": 2}])),
        kind="rubric",
        criteria="rubric",
    )
    assert said.scores == pytest.approx([1 / 3, 1 / 3])


def test_rubric_items_are_asked_one_by_one() -> None:
    def rubric(what: str) -> dict[str, str]:
        form = "Give a number from 0 to 1 in <score></score>."
        return {
            "rubric_str": what,
            "extraction_regex": r"<score>(.*?)</score>",
            "grader_output_format_instruction": form,
        }

    def script(call: Call) -> Reply:
        right = "Is it right?" in question(call)
        assert question(call).endswith("in <score></score>.")
        return Reply("<score>9</score> no, <score> 1.0 </score>" if right else "<score>0.5</score>")

    items = [rubric("Is it right?"), rubric("Is it kind?")]
    said, backend = opinion(script, item("x", rubric_items=items), kind="rubric", criteria="rubric_items")
    assert (said.scores, len(backend.calls)) == ([0.75], 2)
    said, _ = opinion(lambda call: Reply("<score>high</score>"), item("x", rubric_items=items), kind="rubric",
                      criteria="rubric_items", reasks=0)  # fmt: skip
    assert (said.outcome, said.error) == ("unparsable", "the mark for criterion 1 is 'high', which is no number")


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(""), "the reply is empty"),
        (Reply('{"clear": {"reason": "x", "mark": 5}, "sho'), "does not end with a JSON object"),
        (Reply('{"clear": {"reason": "x", "mark": 5}'), "has no mark for clear"),
        (Reply("I would rather not."), "does not end with a JSON object"),
        (marked(clear=5), "has no mark for short"),
        (marked(clear=6, short=1), "the mark for clear is '6', not a whole number, 1 to 5"),
        (marked(clear=True, short=1), "the mark for clear is 'True'"),
        (marked(clear="5", short=1), "not a whole number"),
        (marked(clear=4.5, short=1), "not a whole number"),
        (Reply('{"clear": 5, "short": 5}'), "has no mark for clear"),
        (Reply("[" * 5000), "does not end with a JSON object"),
        (Reply('{"a":' * 5000), "does not end with a JSON object"),
    ],
)
def test_malformed_marks(tmp_path: Path, reply: Reply, why: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(CRITERIA))
    said, backend = opinion(
        lambda call: reply, item("x", "y"), kind="rubric", criteria=str(tmp_path / "c.json"), reasks=1
    )
    assert (said.outcome, said.scores, said.ranks, said.criteria) == ("unparsable", [None, None], None, None)
    assert why in said.error
    assert len(backend.calls) == 4


def test_json_behind_words_or_in_fences() -> None:
    assert last_object('Here it is: {"a": {"b": 1}}') == {"a": {"b": 1}}
    assert last_object('```json\n{"a": 1}\n```') == {"a": 1}
    assert last_object('{broken {"a": 1}') == {"a": 1}


def test_responses_without_marks_are_left_out_of_the_ranking() -> None:
    def script(call: Call) -> Reply:
        said = parts(call)["response"]
        if said == "broken":
            raise CallFailed("HTTP 500")
        return choice(**{"2" if said == "x" else "6": 1.0})

    said, _ = opinion(script, item("x", "broken", "y"), kind="score")
    assert (said.outcome, said.scores, said.ranks) == ("verdict", [2.0, None, 6.0], [1, None, 0])
    assert said.criteria == {"score": [2.0, None, 6.0]}
    assert (said.details["missing"], said.error) == ([1], "response 2: HTTP 500")
    said, _ = opinion(script, item("x", "broken"), kind="score")  # nothing to rank it against
    assert (said.outcome, said.scores, said.error) == ("failed", [None, None], "HTTP 500")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([], "with one entry at least"),
        ({"a": 1}, "criteria are a list"),
        ([3], "criterion 1 is neither a text nor an object"),
        ([{"name": "a"}], "criterion 1 has no text `description`"),
        ([{"description": "a", "weight": -1}], "its weight is -1"),
        ([{"description": "a", "weight": True}], "its weight is True"),
        ([{"description": "a", "scale": [5, 1]}], r"its scale is \[5, 1\]"),
        ([{"description": "a", "scale": [0, 100]}], "at most 20 marks"),
        ([{"description": "a", "points": 2}], "has points, which is not known"),
        ([{"name": "a", "text": "x"}, {"name": "a", "text": "y"}], "two criteria are called a"),
        ([{"rubric_str": "a"}], "lacks extraction_regex, grader_output_format_instruction"),
        (
            [{"rubric_str": "a", "extraction_regex": "(", "grader_output_format_instruction": "b"}],
            "is no regular expression",
        ),
        ([{"rubric_str": "a", "extraction_regex": "x", "grader_output_format_instruction": "b"}], "has no group"),
    ],
)
def test_what_are_no_criteria(tmp_path: Path, told: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        as_criteria(told)
    (tmp_path / "c.json").write_text(json.dumps(told))
    with pytest.raises(PostTrainError, match=why):
        read_criteria(str(tmp_path / "c.json"))
    with pytest.raises(BadRow, match=f"`rubric`: .*{why}"):
        opinion(lambda call: marked(a=1), item("x", rubric=told), kind="rubric", criteria="rubric")


def test_a_missing_file_or_column_of_criteria() -> None:
    with pytest.raises(PostTrainError, match=r"criteria\.yaml: the file of criteria cannot be read"):
        read_criteria("criteria.yaml")
    with pytest.raises(BadRow, match="no column `rubric`"):
        opinion(lambda call: marked(a=1), item("x", "y"), kind="rubric", criteria="rubric")


def test_a_mark_of_a_pattern_has_a_scale_and_one_outside_is_no_mark() -> None:
    graded = {"rubric_str": "Is it?", "extraction_regex": r"(\d+)/", "grader_output_format_instruction": "N/10"}

    def scores(mark: str, **more: Any) -> tuple[list[float | None], str]:
        graded_item = item("x", rubric=[graded | more])
        said, _ = opinion(lambda call: Reply(f"{mark}/"), graded_item, kind="rubric", criteria="rubric", reasks=0)
        return said.scores, said.error

    assert scores("7", scale=[0, 10])[0] == [pytest.approx(0.7)]
    assert scores("1")[0] == [1.0]
    none, told = scores("9999999", scale=[0, 10])
    assert (none, "'9999999', outside its scale from 0 to 10" in told) == ([None], True)


def test_a_judge_that_repeats_the_form_has_given_no_marks(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(CRITERIA))

    def said(script: Callable[[Call], str]) -> str:
        criteria = str(tmp_path / "c.json")
        told, _ = opinion(lambda call: Reply(script(call)), item("x"), kind="rubric", criteria=criteria, reasks=0)
        assert told.outcome == "unparsable"
        return told.error

    assert "does not end with a JSON object" in said(question)
    assert "does not end with a JSON object" in said(lambda call: question(call).rpartition("\n")[2])
    form = json.dumps({name: {"reason": "...", "mark": 5} for name in ("clear", "short")})
    assert said(lambda call: form) == "the reason for clear is that of the form, ..."


def test_a_row_with_other_criteria_is_another_decision() -> None:
    judge = judge_of(
        JudgeSpec("scripted", kind="rubric", criteria="rubric"),
        ScriptedBackend(lambda call: marked(**{"criterion 1": 5})),
    )
    ids = [decision_id(item("x", rubric=criteria), judge) for criteria in (["It is right."], ["It is kind."])]
    assert ids[0] != ids[1]
    assert ids[0] == decision_id(item("x", rubric=["It is right."], other=1), judge)


@pytest.mark.parametrize("changed", [{"extraction_regex": "(y)"}, {"scale": [0, 2]}, {"weight": 2}])
def test_how_marks_are_read_is_part_of_the_identity(tmp_path: Path, changed: dict[str, Any]) -> None:
    graded = {"rubric_str": "Is it?", "extraction_regex": "(x)", "grader_output_format_instruction": "x"}
    hashes = []
    for number, more in enumerate(({}, changed)):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps([graded | more]))
        judge = judge_of(
            JudgeSpec("scripted", kind="rubric", criteria=str(file)), ScriptedBackend(lambda call: marked())
        )
        hashes.append(judge.identity["prompt_hash"])
    assert hashes[0] != hashes[1]


def test_weights_are_part_of_the_identity(tmp_path: Path) -> None:
    hashes = set()
    for weight in (1, 2):
        (tmp_path / "c.json").write_text(json.dumps([{**CRITERIA[0], "weight": weight}, CRITERIA[1]]))
        spec = JudgeSpec("scripted", kind="rubric", criteria=str(tmp_path / "c.json"))
        hashes.add(judge_of(spec, ScriptedBackend(lambda call: marked())).identity["prompt_hash"])
    assert len(hashes) == 2
