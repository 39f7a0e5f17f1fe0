"""Prompts of every usual shape: what the model sees, what rewards see, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_posttrain import PostTrainError, PromptData
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.prompts import PromptColumns, prompt_reader
from lit_posttrain.data.rows.marks import MESSAGE_MARKS, ROW_MARKS
from lit_posttrain.data.rows.row import Row
from lit_posttrain.rollout.text import prompt_ids
from lit_posttrain.types import PromptRecord

ASKED = [{"role": "user", "content": "what is it"}]


def read(tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]], **options: Any) -> PromptData:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptData(str(file), cache_dir=str(tmp_path / "cache"), **options)
    data.build(tokenizer, 512)
    return data


ANSWERED = [*ASKED, {"role": "assistant", "content": "a fox"}]
BRIEF = [{"role": "system", "content": "be brief"}, *ASKED]
SIDE = "\n\nHuman: what is it\n\nAssistant:"
SHAPES: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "text": ({"prompt": "what is it", "answer": "a fox"}, ASKED),
    "messages in prompt": ({"prompt": BRIEF}, BRIEF),
    "question": ({"question": "what is it", "answer": "a fox"}, ASKED),
    "instruction": ({"instruction": "what is it", "input": "fox"}, [{"role": "user", "content": "what is it\n\nfox"}]),
    "prompt with context": (
        {"prompt": "what is it", "context": "fox", "input": "3 4", "answer": "7"},
        [{"role": "user", "content": "what is it\n\nfox"}],
    ),
    "prompt with a number": ({"prompt": "what is it", "input": 3, "context": 4, "answers": ["7"]}, ASKED),
    "prompt with tests": ({"prompt": "what is it", "input": ["1", "2"], "outputs": ["3", "4"]}, ASKED),
    "conversation": ({"messages": ANSWERED}, ASKED),
    "preference": ({"chosen": f"{SIDE} fox", "rejected": f"{SIDE} dog"}, ASKED),
    "prompt with input": ({"prompt": "what is it", "input": "fox"}, [{"role": "user", "content": "what is it\n\nfox"}]),
    "prompt with input and more": (
        {"prompt": "what is it", "input": "fox", "id": 3, "category": "animals"},
        [{"role": "user", "content": "what is it\n\nfox"}],
    ),
    "row's system": ({"prompt": "what is it", "system": "be brief"}, BRIEF),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_sees_what_generation_shows_it(
    shape: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    row, messages = SHAPES[shape]
    tree = read(tmp_path, tokenizer, [row]).train_store[0]
    assert tree.prompt.tolist() == prompt_ids(tokenizer, messages)
    assert tree.responses == []
    record = PromptRecord.of(tree)
    assert record.messages == messages
    assert record.columns == row


def test_plain_text_without_a_template(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    tree = read(tmp_path, tokenizer, [{"prompt": "what is it"}]).train_store[0]
    assert tree.prompt.tolist() == tokenizer("what is it")["input_ids"]


def test_options(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"q": f"what is {i}", "fox": i} for i in range(20)]
    data = read(
        tmp_path,
        tokenizer,
        rows,
        columns=PromptColumns(prompt="q"),
        system_prompt="be brief",
        template="{prompt}? One word.",
        val_fraction=0.3,
    )
    held, rest = data.val_stores["held_out"], data.train_store
    assert len(held) + len(rest) == 20
    assert 0 < len(held) < 20
    record = PromptRecord.of(rest[0])
    assert record.messages[0] == {"role": "system", "content": "be brief"}
    assert record.messages[1]["content"] == f"{record.columns['q']}? One word."


def test_long_prompts_are_dropped_and_counted(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": "what is it"}, {"prompt": "what is it " * 30}]
    data = read(tmp_path, tokenizer, rows, max_length=40)
    assert len(data.train_store) == 1
    assert data.audit.total.dropped["prompt longer than max_length"].count == 1
    assert not any("trained on" in line for line in data.audit.warnings)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (
            {"frage": "was"},
            {},
            r"rows.jsonl:1: no prompt among the columns frage; name it",
        ),
        ({"prompt": " "}, {}, r"rows.jsonl:1: `prompt` is empty: nothing is asked; fill or remove the row"),
        ({"prompt": 3}, {}, r"rows.jsonl:1: `prompt` is 3, not a string"),
        (
            {"prompt": "x"},
            {"columns": PromptColumns(prompt="prompts")},
            "no column `prompts` .* did you mean `prompt`",
        ),
    ],
)
def test_mistakes(
    row: dict[str, Any], options: dict[str, Any], said: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(PostTrainError, match=said):
        read(tmp_path, tokenizer, [row], **options)


def test_a_template_needs_a_place_for_the_prompt() -> None:
    with pytest.raises(PostTrainError, match=r"--data.template has no \{prompt\}"):
        PromptData("x.jsonl", template="prompt")


@pytest.mark.parametrize("mark", ROW_MARKS)
def test_marked_rows_are_not_prompts(mark: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    no, yes = (0, 1) if ROW_MARKS[mark] else (1, 0)
    data = read(tmp_path, tokenizer, [{"prompt": "a", mark: no}, {"prompt": "b", mark: yes}, {"prompt": "c"}])
    assert data.audit.total.dropped["marked not to be trained on"].count == 1
    assert [PromptRecord.of(tree).messages[0]["content"] for tree in data.train_store] == ["b", "c"]
    assert prompt_reader(Record({"prompt": "a", mark: no}, "rows.jsonl", 1)).example(Row({"prompt": "a", mark: no}))


@pytest.mark.parametrize("column", sorted(MESSAGE_MARKS.keys() - ROW_MARKS.keys()))
def test_a_column_that_marks_turns_alone_is_no_mark_of_a_row(
    column: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    values = [0, 1, 0.7, 0.0, True, False, "1"]
    rows = [{"prompt": "a", "completion": str(i), column: value} for i, value in enumerate(values)]
    assert len(read(tmp_path, tokenizer, rows).train_store) == len(rows)
    for row in rows:
        seen = Row(row)
        recognise(Record(row, "rows.jsonl", 1)).example(seen)
        assert seen.unread == [column]


def test_half_a_surrogate_in_another_column_is_kept(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{"prompt": "what is it", "answer": "a \ud83d fox", "\udc00": ["\ud83d\ude00"]}]
    data = read(tmp_path, tokenizer, rows)
    assert PromptRecord.of(data.train_store[0]).columns == json.loads(json.dumps(rows[0]))
