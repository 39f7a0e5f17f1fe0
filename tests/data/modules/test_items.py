"""Items for annotators and judges come from every kind of file with responses, each once, with where they are from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import pytest
from helpers.runs import write

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.modules.items import read_items
from lit_posttrain.errors import PostTrainError

TEA = [{"role": "user", "content": "What is tea?"}]
ASKED = {"prompt": "What is tea?"}
GENERATED: dict[str, Any] = {
    **ASKED,
    "topic": "drinks",
    "responses": [
        {"text": "A drink.", "finish_reason": "stop", "logprob": -3.5, "model": "m", "sampling": {"seed": 1}},
        {"text": "", "reasoning_content": "Hm.", "finish_reason": "length", "logprob": -9.0},
    ],
}


@pytest.mark.parametrize(
    ("row", "responses", "columns"),
    [
        (
            GENERATED,
            [{"text": "A drink.", "model": "m", "sampling": {"seed": 1}}, {"text": "", "reasoning_content": "Hm."}],
            {"topic": "drinks"},
        ),
        (
            {**ASKED, "chosen": "yes", "rejected": "no", "chosen_model": "m", "rejected_model": "n"},
            [{"text": "yes", "model": "m"}, {"text": "no", "model": "n"}],
            {"chosen_model": "m", "rejected_model": "n"},
        ),
        (
            {**ASKED, "response1": "yes", "response2": "no", "annotator1": 2, "tools": [{"name": "f"}]},
            [{"text": "yes"}, {"text": "no"}],
            {"annotator1": 2},
        ),
        (
            {**ASKED, "responses": ["b", "a", "b "], "ranks": [1, 0, 1]},
            [{"text": "b"}, {"text": "a"}],
            {"ranks": [1, 0, 1]},
        ),
        (
            Decision(
                "d", "i", "ann", TEA, [{"text": "x", "model": "m"}, {"text": "y"}], "skipped", columns={"k": 1}
            ).row(),
            [{"text": "x", "model": "m"}, {"text": "y"}],
            {"k": 1},
        ),
    ],
)
def test_items_of_every_kind(
    tmp_path: Path, row: dict[str, Any], responses: list[dict[str, Any]], columns: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    (item,) = read_items(path)
    tools = item.columns.pop("tools", None)
    assert item == Item(TEA, responses, columns, f"{path}:1")
    assert (tools is not None) == ("tools" in row)


def test_an_item_has_the_same_id_in_every_file(tmp_path: Path) -> None:
    pair = {**ASKED, "chosen": "yes", "rejected": "no"}
    (one,) = read_items(write(tmp_path / "a.jsonl", [pair]))
    said = Decision("d", one.id, "ann", one.prompt, one.responses)
    (other,) = read_items(write(tmp_path / "b.jsonl", [said.row(), {**said.row(), "id": "e", "annotator": "bob"}]))
    assert one.id == other.id
    (third,) = read_items(write(tmp_path / "c.jsonl", [{**pair, "rejected": "No."}]))
    assert third.id != one.id


def test_what_cannot_be_judged_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rows: list[list[Any]] = [
        ["a", "b"],
        ["a"],
        ["a", "a "],
        ["a", ""],
        ["a", "b"],
        ["a", "b", "a"],
        [],
        [{"text": [call]}, "b"],
    ]
    path = write(tmp_path / "a.jsonl", [{**ASKED, "responses": said} for said in rows])
    with caplog.at_level(logging.WARNING):
        items = read_items(path)
    assert [[one["text"] for one in item.responses] for item in items] == [["a", "b"]]
    assert sorted(caplog.messages) == [
        f"{path}: 1 row with equal responses, of which one is kept (such as line 6)",
        f"{path}:2, :7: left out, one response",
        f"{path}:3: left out, equal responses",
        f"{path}:4: left out, empty response",
        f"{path}:5, :6: left out, an item that came before",
        f"{path}:8: left out, several turns",
    ]
    with pytest.raises(PostTrainError, match=r"b.jsonl: nothing to judge \(.*b.jsonl:1: left out, one response\)"):
        read_items(write(tmp_path / "b.jsonl", [{**ASKED, "responses": ["a"]}]))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**ASKED, "responses": [1, 2]}, "a.jsonl:1: `responses` is a list, not a list of responses"),
        ({**ASKED, "responses": [{"said": "a"}]}, r"a.jsonl:1: responses\[0\] has none of text, content"),
        ({"prompt": "", "responses": ["a", "b"]}, "a.jsonl:1: "),
        (ASKED, r"a.jsonl:1: not preferences but prompts without answers \(prompt\)"),
        ({"messages": [*TEA, {"role": "assistant", "content": "a"}]}, r"a.jsonl:1: not preferences but conversations"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(PostTrainError, match=told):
        read_items(write(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize(
    ("row", "texts", "at_least"),
    [
        (ASKED, [], 0),
        ({"messages": [*TEA, {"role": "assistant", "content": "a"}]}, ["a"], 1),
        ({**ASKED, "completion": "a"}, ["a"], 1),
        ({**ASKED, "completion": "a", "label": True}, ["a"], 1),
        ({**ASKED, "responses": ["a"]}, ["a"], 1),
        ({**ASKED, "responses": ["a", "b"]}, ["a", "b"], 0),
        ({**ASKED, "responses": ["a", "a"]}, ["a"], 1),
        (Decision("d", "i", "ann", TEA, messages=[*TEA, {"role": "assistant", "content": "a"}]).row(), [], 0),
    ],
)
def test_fewer_responses_are_enough_to_write_and_rate(
    tmp_path: Path, row: dict[str, Any], texts: list[str], at_least: Literal[0, 1, 2]
) -> None:
    path = write(tmp_path / "a.jsonl", [row])
    (item,) = read_items(path, at_least=at_least)
    assert (item.prompt, [one["text"] for one in item.responses]) == (TEA, texts)
    (opened,) = read_items(path, system="Be brief.", at_least=at_least)
    assert opened.prompt == [{"role": "system", "content": "Be brief."}, *TEA]
    with pytest.raises(PostTrainError):
        read_items(path, at_least=2 if at_least == 1 or not texts else 3)  # type: ignore[arg-type]  # more than there are


@pytest.mark.parametrize(("name", "count"), [("pandalm", 651), ("llmbar", 526), ("oasst_rankings", 130)])
def test_real_files(real_data: Path, name: str, count: int) -> None:
    items = read_items(str(real_data / name / "dev.jsonl"))
    assert len(items) == count
    assert all(len(item.responses) > 1 for item in items)
