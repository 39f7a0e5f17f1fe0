"""Exports of Argilla and Label Studio are read as decisions, and decisions survive the way there and back. The files of
exports/ have the exact shape of those tools; argilla2*.json were written by Argilla 2.8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import write
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.feedback.foreign import Judged, by_item
from lit_posttrain.data.feedback.label_studio import from_label_studio
from lit_posttrain.data.feedback.record import Decision, item_id
from lit_posttrain.data.feedback.to_argilla import to_argilla
from lit_posttrain.data.feedback.to_label_studio import to_pairwise, to_ranker
from lit_posttrain.data.files.annotations import export_reader
from lit_posttrain.data.modules.items import read_items
from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.store.build import build_store

EXPORTS = Path(__file__).parent / "exports"
ANN, BOB = "f05acd7b-15d6-5e2b-8431-58abb673d1dd", "515e93c6-3782-59db-96be-ad5b8cf872a5"


def rows_of(name: str) -> list[dict[str, Any]]:
    text = (EXPORTS / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def read(rows: list[dict[str, Any]]) -> list[list[Decision] | str]:
    """The decisions of each record, or why there are none."""
    reader = export_reader(rows[0])
    assert reader is not None
    found: list[list[Decision] | str] = []
    for row in rows:
        try:
            found.append(reader(row))
        except NothingToLearn as problem:
            found.append(problem.reason)
    return found


def said(found: list[Decision] | str) -> Any:
    if isinstance(found, str):
        return found
    return [(one.annotator, one.judge is not None, one.outcome, one.ranks) for one in found]


@pytest.mark.parametrize(
    ("name", "drafts"),
    [
        ("argilla2.json", [(ANN, False, "verdict", [1, 0]), (BOB, False, "verdict", [1, 0])]),  # it tells no status
        ("argilla2_flat.json", [(BOB, False, "skipped", None)]),
    ],
)
def test_argilla_2(name: str, drafts: list[Any]) -> None:
    found = read(rows_of(name))
    assert [said(one) for one in found] == [
        [(ANN, False, "verdict", [0, 1]), (BOB, False, "verdict", [1, 0]), ("judge-1", True, "verdict", [0, 1])],
        [(ANN, False, "verdict", [1, 0])],
        [("judge-1", True, "verdict", [1, 0])],
        drafts,
        "not annotated",
    ]
    first = found[0][0]
    assert isinstance(first, Decision)
    assert first.prompt == [{"role": "user", "content": "What is tea?"}]
    assert [one["text"] for one in first.responses] == ["A drink of leaves.", "No idea."]
    assert (first.reason, first.columns) == ("because 0", {"topic": "drinks"})
    assert first.item == item_id(first.prompt, first.responses)


def test_argilla_1() -> None:
    found = read(rows_of("argilla1.jsonl"))
    one, two = (f"5f1b0f3a-0000-4000-8000-00000000000{n}" for n in (1, 2))
    assert [said(one) for one in found] == [
        [(one, False, "verdict", [0, 2, 1]), (two, False, "verdict", [0, 1, 0])],
        [("judge-1", True, "verdict", [2, 0, 1])],
        "not annotated",  # but discarded; only a ranking says which fields are the responses
    ]
    assert isinstance(found[0][0], Decision)
    assert found[0][0].columns == {"source": "forum"}


def test_label_studio() -> None:
    found = read(rows_of("label_studio_ranker.json"))
    assert [said(one) for one in found] == [
        [("1", False, "verdict", [0, 2, 1]), ("bob@example.org", False, "verdict", [1, 2, 0])],
        [("1", False, "skipped", None)],
        [("judge-1", True, "verdict", [1, 0, 2])],
        "not annotated",
    ]
    first = found[0][0]
    assert isinstance(first, Decision)
    assert (first.reason, first.seconds, first.columns) == ("it is complete", 12.5, {"topic": "drinks"})
    assert [said(one) for one in read(rows_of("label_studio_buckets.json"))] == [
        [("1", False, "verdict", [0, 1, 1])],
        [("1", False, "verdict", [0, None, 1])],
    ]
    assert [said(one) for one in read(rows_of("label_studio_pairwise.json"))] == [
        [("1", False, "verdict", [0, 1])],
        [("1", False, "verdict", [1, 0])],
    ]


def test_buckets_of_an_unknown_order_are_not_guessed() -> None:
    (row, _) = rows_of("label_studio_buckets.json")
    row["annotations"][0]["result"][0]["value"] = {"ranker": {"_": [], "yes": ["r1"], "no": ["r0", "r2"]}}
    with pytest.raises(BadRow, match=r"which of the buckets yes, no is better.*--buckets"):
        from_label_studio(row)
    (one,) = from_label_studio(row, ["yes", "no"])
    assert one.ranks == [1, 0, 1]


def test_what_is_tied_in_the_only_bucket_is_no_order() -> None:
    (row, _) = rows_of("label_studio_buckets.json")
    result = row["annotations"][0]["result"][0]
    result["value"] = {"ranker": {"_": ["r1"], "yes": ["r0", "r2"]}}
    assert from_label_studio(row)[0].ranks == [0, None, 0]
    result["value"] = {"ranker": {"yes": ["r0", "r2", "r1"]}}
    assert from_label_studio(row, ["yes", "no"])[0].ranks == [0, 0, 0]
    assert from_label_studio(row)[0].ranks == [0, 2, 1]  # of a Ranker without buckets


def test_columns_beside_the_two_responses_are_not_taken_for_them() -> None:
    beside = {"score_1": "0.1", "score_2": "0.9"}
    made, _, _ = to_pairwise(by_item([decision("a", [0, 1], columns=beside)]))
    (found,) = back(made)
    assert ([one["text"] for one in found.responses], found.columns) == (["a 0", "a 1"], beside)
    (row, *_) = rows_of("label_studio_pairwise.json")
    data = {"prompt": "Q", "text_a": "A", "text_b": "B", "rank_1": 1, "rank_2": 2}
    assert [one["text"] for one in from_label_studio({**row, "data": data})[0].responses] == ["A", "B"]
    with pytest.raises(BadRow, match="score_1 and score_2; text_a and text_b; call those that are response1"):
        from_label_studio({**row, "data": {**data, **beside}})
    with pytest.raises(BadRow, match="no two texts of"):
        from_label_studio({**row, "data": {"prompt": "Q", "response1": "A", "response2": None}})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": {"prompt": "a", "text": "b"}}, "0 of prompt, text are lists of items with ids"),
        ({"annotations": [{"result": [{"type": "choices", "value": {"choices": ["a"]}}]}]}, "kinds choices; of Label"),
        ({"annotations": [{"result": [{"type": "ranker", "value": {"ranker": {"rank": ["r0", "r9"]}}}]}]}, "has 'r9'"),
        ({"annotations": [{"result": [{"type": "ranker", "value": {"ranker": 3}}]}]}, "neither a list nor buckets"),
    ],
)
def test_other_tasks_are_bad_rows(change: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRow, match=told):
        from_label_studio(rows_of("label_studio_ranker.json")[0] | change)


def test_other_records_are_bad_rows() -> None:
    row = rows_of("argilla2.json")[0]
    row["responses"] = {"label": [{"value": "yes", "user_id": ANN}]}
    row["suggestions"] = {}
    reader = export_reader(row)
    assert reader is not None
    with pytest.raises(BadRow, match="without a ranking"):
        reader(row)
    row["responses"] = {"ranking": [{"value": ["one", "two"], "user_id": ANN}]}
    with pytest.raises(BadRow, match="has `one`, and the fields are instruction, response1, response2"):
        reader(row)


def test_other_data_is_no_export() -> None:
    rows: list[dict[str, Any]] = [
        {"data": "x", "annotations": "y"},
        {"fields": ["a"], "responses": ["b"], "suggestions": []},
        {"x.responses": []},
    ]
    assert [export_reader(row) for row in rows] == [None, None, None]


@pytest.mark.parametrize(
    ("name", "trees", "dropped"),
    [
        ("argilla2.json", 6, {"not annotated": 1}),
        ("argilla2_flat.json", 4, {"not annotated": 1, "skipped by the annotator": 1}),
        ("argilla1.jsonl", 3, {"not annotated": 1}),
        ("label_studio_ranker.json", 3, {"not annotated": 1, "skipped by the annotator": 1}),
        ("label_studio_buckets.json", 2, {}),
        ("label_studio_pairwise.json", 2, {}),
    ],
)
def test_exports_are_preference_data(
    name: str, trees: int, dropped: dict[str, int], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    store, audit = build_store([str(EXPORTS / name)], tokenizer, PreferenceOptions(), str(tmp_path))
    assert len(store) == trees
    (file,) = audit.files
    assert {reason: tally.count for reason, tally in file.dropped.items()} == dropped
    assert set(file.unread) <= {"topic", "columns.source"}
    assert len(read_items(str(EXPORTS / name))) == len(rows_of(name)) - dropped.get("not annotated", 0)


TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]


def decision(name: str, ranks: list[int | None] | None, count: int = 2, who: str = "ann", **more: Any) -> Decision:
    responses = [{"text": f"{name} {n}", "model": f"m{n}", "sampling": {"seed": n}} for n in range(count)]
    prompt = more.pop("prompt", [{"role": "user", "content": f"Q {name}"}])
    return Decision(f"{name}-{who}", item_id(prompt, responses), who, prompt, responses, ranks=ranks, **more)


def same(one: Decision, other: Decision, *names: str) -> bool:
    names = ("item", "annotator", "prompt", "responses", "outcome", "ranks", "reason", *names)
    return all(getattr(one, name) == getattr(other, name) for name in names)


def back(made: list[dict[str, Any]]) -> list[Decision]:
    rows = json.loads(json.dumps(made))
    return [one for found in read(rows) for one in found if isinstance(one, Decision)]


def test_through_argilla_and_back() -> None:
    judge = decision("b", [1, 0], who="judge", judge={"model": "judge"})
    given = [
        decision("a", [2, 0, 1], 3, reason="so"),
        decision("a", [0, 0, 1], 3, who="bob"),
        decision("b", [0, 1]),
        judge,
    ]
    made, lost = to_argilla(by_item(given))
    assert lost == []
    assert all(same(*pair) for pair in zip(given, back(made), strict=True))
    hard = [
        decision("a", [0, None, 1], 3),
        decision("a", None, 3, who="bob", outcome="skipped"),
        decision("b", None, probability=0.7, who="j", judge={"model": "j"}),
        decision("b", [0, 1], strength=2.0),
        decision("b", [1, 0], rejected=[True, False]),
    ]
    made, lost = to_argilla(by_item(hard))
    assert sorted(lost) == [
        "Argilla has no place for 1 earlier rankings of an item by the same person",
        "Argilla has no place for 1 partial rankings",
        "Argilla has no place for 1 probabilities, of which the likelier side is kept",
        "Argilla has no place for 1 rejections",
        "Argilla has no place for 1 skipped items",
        "Argilla has no place for 1 strengths",
    ]
    assert [(one.annotator, one.ranks) for one in back(made)] == [("ann", [1, 0]), ("j", [0, 1])]


def test_through_label_studio_and_back() -> None:
    given = [
        decision("a", [2, 0, 1], 3, reason="so", seconds=3.5, time="2026-01-05T10:02:00.000Z"),
        decision("a", [1, 0, 2], 3, who="bob", columns={"topic": "tea"}),
        decision("b", [0, 1], who="judge", judge={"model": "judge"}),
        decision("c", None, outcome="skipped", reason="unclear"),
    ]
    made, lost, interface = to_ranker(by_item(given))
    assert lost == []
    assert "Bucket" not in interface
    assert '<Ranker name="rank" toName="items"/>' in interface
    assert all(same(*pair, "id", "seconds", "time") for pair in zip(given, back(made), strict=True))
    given += [decision("d", [0, None, 1, 1], 4), decision("e", [0, 0], prompt=TALK)]
    made, lost, interface = to_ranker(by_item(given))
    assert lost == []
    assert interface.count("<Bucket ") == 3
    assert "<Paragraphs" in interface  # of messages
    assert all(same(*pair, "id") for pair in zip(given, back(made), strict=True))


def test_through_pairwise_and_back() -> None:
    given = [decision("a", [0, 1]), decision("b", [1, 0], who="bob"), decision("c", None, outcome="skipped")]
    more = [decision("d", [0, 0]), decision("e", [0, 1, 2], 3)]
    made, lost, interface = to_pairwise(by_item([*given, *more]))
    assert sorted(lost) == [
        "Label Studio's Pairwise has no place for 1 items with another number of responses than two",
        "Label Studio's Pairwise has no place for 1 ties",
    ]
    assert '<Pairwise name="pair" toName="response1,response2"/>' in interface
    found = back(made)
    assert [(one.id, one.ranks, one.outcome) for one in found] == [
        ("a-ann", [0, 1], "verdict"),
        ("b-bob", [1, 0], "verdict"),
        ("c-ann", None, "skipped"),
    ]


def test_items_that_nobody_has_judged_yet_are_sent_too() -> None:
    asked = Judged("i", [{"role": "user", "content": "Q"}], [{"text": "A"}, {"text": "B"}], {"topic": "tea"})
    (task,) = to_ranker([asked])[0]
    assert (task["annotations"], task["data"]["topic"], len(task["data"]["items"])) == ([], "tea", 2)
    (record,) = to_argilla([asked])[0]
    assert record["fields"] == {"prompt": "Q", "response1": "A", "response2": "B"}
    assert (record["responses"], record["status"]) == ({}, "pending")
    for made in ([task], to_pairwise([asked])[0], [record]):
        assert read(made) == ["not annotated"]


def test_what_came_back_from_label_studio_is_whose_it_is_there() -> None:
    """Somebody has accepted a judge's prediction, with all that stood in it."""
    made, _, _ = to_ranker(by_item([decision("a", [1, 0], who="judge", judge={"model": "judge"})]))
    (task,) = made
    task["annotations"] = [{"id": 3, "completed_by": 8, "result": task.pop("predictions")[0]["result"]}]
    (one,) = from_label_studio(task)
    assert (one.annotator, one.judge) == ("8", None)
    assert one.id != "a-judge"


def test_files_of_other_tools_keep_their_line(tmp_path: Path) -> None:
    rows = rows_of("label_studio_ranker.json")
    assert [item.source for item in read_items(write(tmp_path / "a.jsonl", rows))][-1].endswith("a.jsonl:3")
