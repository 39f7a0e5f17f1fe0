"""Prompts from files for `generate` and callbacks: read as `fit` reads them, and what else is in a row is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny

from lit_posttrain import PromptData
from lit_posttrain.data.modules.prompt_files import read_prompts, refuse_columns, user_prompt, with_answer
from lit_posttrain.data.rows.beside import SYSTEM_COLUMNS, TOOL_COLUMNS
from lit_posttrain.data.rows.kinds import CONVERSATION, PROMPT
from lit_posttrain.errors import PostTrainError
from lit_posttrain.rollout.text import prompt_ids
from lit_posttrain.types import PromptRecord

USER = {"role": "user", "content": "what is it"}
FOX = {"role": "assistant", "content": "a fox"}
TOOL = {"type": "function", "function": {"name": "zulu", "parameters": {}}}
TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}" + tiny.CHATML
SHAPES: dict[str, dict[str, Any]] = {
    **{name: {name: "what is it"} for name in PROMPT},
    **{name: {name: [USER, FOX]} for name in CONVERSATION},
    "messages in prompt": {"prompt": [{"role": "system", "content": "be brief"}, USER]},
    "begun": {"prompt": [USER, {"role": "assistant", "content": "It is"}]},
    "pair": {
        "chosen": [USER, {"role": "assistant", "content": "a fox"}],
        "rejected": [USER, {"role": "assistant", "content": "x"}],
    },
    "ranking": {"messages": [USER], "responses": [{"text": "a", "rank": 0}, {"text": "b", "rank": 1}]},
    "input": {"instruction": "what is", "input": "it"},
    "input of a prompt": {"prompt": "Summarise this.", "input": "the long text"},
    "input of a task": {"prompt": "Add.", "input": "3 4", "answer": "7"},
    "a container": {"prompt": "Fix the bug", "image": "ubuntu:20.04"},
    "history": {"instruction": "what is it", "history": [["one", "two"]]},
    **{name: {"prompt": "what is it", name: "be brief"} for name in SYSTEM_COLUMNS},
    **{name: {"prompt": "what is it", name: [TOOL]} for name in TOOL_COLUMNS},
}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("shape", SHAPES)
def test_generation_and_training_read_the_same_prompt(shape: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {**SHAPES[shape], "id": 7})
    data, tokenizer = PromptData(path, cache_dir=str(tmp_path)), tiny.tokenizer(TEMPLATE)
    data.build(tokenizer, 512)
    (one,) = read_prompts(path)
    tree = data.train_store[0]
    assert prompt_ids(tokenizer, one) == tree.prompt.tolist()
    assert PromptRecord.of(tree) == PromptRecord(one.messages, one.columns, one.tools, one.variables)
    assert one.rest["id"] == 7
    assert one.source == f"{path}:1"


def test_rows_keep_what_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    row = {"id": 7, "question": "what is it", "answer": "a fox", "tools": [TOOL], "note": None, "system": "be brief"}
    (one,) = read_prompts(write(tmp_path / "rows.jsonl", row))
    assert one.row(prompt="x", responses=[]) == {
        "id": 7, "answer": "a fox", "tools": [TOOL], "note": None, "prompt": "x", "responses": []
    }  # fmt: skip
    (one,) = read_prompts(write(tmp_path / "rows.jsonl", {"prompt": "what is it", "responses": ["a fox"]}))
    with pytest.raises(
        PostTrainError, match=r"rows\.jsonl:1: the column `responses` is also one of the output; rename"
    ):
        refuse_columns([one], ["prompt", "responses"])


ANSWERED: dict[str, dict[str, Any]] = {
    "pair": {
        "chosen": [USER, {"role": "assistant", "content": "a fox"}],
        "rejected": [USER, {"role": "assistant", "content": "a dog"}],
    },
    "transcripts": {
        "chosen": "\n\nHuman: what is it\n\nAssistant: a fox",
        "rejected": "\n\nHuman: what is it\n\nAssistant: a dog",
    },
    "ranking": {"responses": [{"text": "a", "rank": 0}, {"text": "b", "rank": 1}]},
    "judged": {"response1": "a", "response2": "b", "label": 1},
    "single": {"completion": "a", "label": True},
}


@pytest.mark.parametrize("shape", ANSWERED)
@pytest.mark.parametrize("column", [None, *PROMPT, *CONVERSATION, "input"])
def test_answers_that_stand_beside_a_prompt_are_kept(shape: str, column: str | None, tmp_path: Path) -> None:
    rest = ANSWERED[shape]
    if column is None and shape not in ("pair", "transcripts"):
        pytest.skip("has no prompt")
    if (column == "input" and shape not in ("ranking", "judged")) or (column in CONVERSATION and shape == "single"):
        pytest.skip("read as no prompt, in training too")
    asks = {column: [USER] if column in CONVERSATION else "what is it"} if column else {}
    row = {**asks, **rest, "system": "be brief", "history": [["one", "two"]]}
    if column is None or shape in ("pair", "transcripts"):
        del row["history"], row["system"]
    (one,) = read_prompts(write(tmp_path / "rows.jsonl", row))
    assert one.rest == rest
    assert one.messages[-1] == USER


def test_rows_without_a_prompt_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tokenizer: Any
) -> None:
    bad = [
        {"chosen": "\n\nHuman: what\n\nAssistant: a", "rejected": "\n\nHuman: who\n\nAssistant: b"},
        {"chosen": "\n\nHuman: what\n\nAssistant: a", "rejected": "\n\nHuman: what\n\nAssistant:"},
        {
            "chosen": "\n\nHuman: \n\nAssistant: a\n\nHuman: b\n\nAssistant: c",
            "rejected": "\n\nHuman: a\n\nAssistant: b",
        },
    ]
    path = write(tmp_path / "rows.jsonl", ANSWERED["transcripts"], *bad, ANSWERED["transcripts"])
    assert [one.source for one in read_prompts(path)] == [f"{path}:1", f"{path}:5"]
    assert f"{path}:2: dropped, no shared prompt" in caplog.text
    assert f"{path}:3: dropped, empty response" in caplog.text
    assert f"{path}:4: dropped, empty turn" in caplog.text
    assert "read as Human/Assistant transcripts" in caplog.text
    data = PromptData(path, cache_dir=str(tmp_path))
    data.build(tokenizer, 512)
    assert len(data.train_store) == 2, "as in training"
    with pytest.raises(PostTrainError, match=r"no prompts .*rows\.jsonl:1: dropped, no shared prompt"):
        read_prompts(write(tmp_path / "rows.jsonl", bad[0]))


@pytest.mark.parametrize("name", ["rows.json.gz", "rows.xlsx", "rows.md", "rows.JSONLL", "rows.yaml", "rows.zip"])
def test_files_of_other_kinds_are_not_taken_for_prompts(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, {"prompt": "what is it"})
    with pytest.raises(PostTrainError, match=r"files are not read; rows are in \.jsonl, .* a \.txt file has"):
        read_prompts(path)


@pytest.mark.parametrize("name", ["asked", "asked.txt", "asked.TXT"])
def test_a_file_of_lines_may_have_no_suffix(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("what is it\n")
    assert read_prompts(str(tmp_path / name))[0].messages == [USER]


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "asked.txt"
    path.write_bytes("\ufeffwhat is it\r\n\n[not json\u2028\n".encode())
    assert [one.messages[-1]["content"] for one in read_prompts(str(path))] == ["what is it", "[not json\u2028"]
    system = read_prompts(str(path), "be brief")[0].messages
    assert system == user_prompt("what is it", "be brief").messages == [{"role": "system", "content": "be brief"}, USER]
    with pytest.raises(PostTrainError, match=r"none/of/it\.txt: no such file of prompts"):
        read_prompts("none/of/it.txt")
    with pytest.raises(PostTrainError, match=r"rows\.jsonl:2: no prompt among the columns id; rename the one"):
        read_prompts(write(tmp_path / "rows.jsonl", {"prompt": "a"}, {"id": 3}))
    with pytest.raises(PostTrainError, match=r"jsonl:1: `messages` is an object, not a list of messages; mend it"):
        read_prompts(write(tmp_path / "rows.jsonl", {"messages": USER}))


def test_what_the_assistant_has_begun_is_one_turn_with_its_end() -> None:
    begun = {"role": "assistant", "content": "It is"}
    assert with_answer([USER, begun], {"role": "assistant", "content": " a fox"}) == [
        USER,
        {"role": "assistant", "content": "It is a fox"},
    ]
    assert with_answer([USER], FOX) == [USER, {"role": "assistant", "content": "a fox"}]
