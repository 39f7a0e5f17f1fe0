"""Rows that a function of one's own reads: in every data module, in a stream; its mistakes, and edits of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_posttrain import ConversationData, PostTrainError, PreferenceData, PromptData
from lit_posttrain.types import PromptRecord

READ = "def read(row):\n    return {'prompt': row['q'], 'completion': row['a']}\n"
ROWS = [{"q": f"what is {n}", "a": f"it is {n}"} for n in range(4)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file and a module that reads its rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # within a second an edit would go unnoticed
    write(ROWS)
    Path("my_rows.py").write_text(READ)
    return tmp_path


def write(rows: list[dict[str, Any]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit(code: str) -> None:
    """As a later command finds the module."""
    Path("my_rows.py").write_text(code)
    sys.modules.pop("my_rows", None)
    importlib.invalidate_caches()


def texts(data: Any, tokenizer: Any) -> list[str]:
    """What there is to train on, after the data was read."""
    data.build(tokenizer, 256)
    return [tokenizer.decode(tree.responses[0].tokens, skip_special_tokens=True) for tree in data.train_store]


def test_rows_are_read_by_it(folder: Path, tokenizer: Any) -> None:
    data = ConversationData("rows.jsonl", format="my_rows.read")
    assert texts(data, tokenizer) == [row["a"] for row in ROWS]
    assert data.audit.read_by == "my_rows.read"
    assert "columns: prompt/completion, of what my_rows.read returns" in data.audit.table()
    assert json.loads(data.audit.to_json())["read_by"] == "my_rows.read"


def test_an_edit_of_its_module_is_noticed(folder: Path, tokenizer: Any) -> None:
    def read() -> list[str]:
        return texts(ConversationData("rows.jsonl", format="my_rows.read"), tokenizer)

    assert read() == [row["a"] for row in ROWS]
    edit("ANSWER = 'never mind'\n" + READ.replace("row['a']", "ANSWER"))
    assert read() == ["never mind"] * 4
    edit("ANSWER = 'who knows'\n" + READ.replace("row['a']", "ANSWER"))  # the function is as it was
    assert read() == ["who knows"] * 4


@pytest.mark.parametrize(
    "code",
    [
        "from functools import partial\n"
        "def given(said, row):\n    return {'prompt': row['q'], 'completion': said}\n"
        "read = partial(given, 'never mind')\n",
        "class Reader:\n    def __call__(self, row):\n        return {'prompt': row['q'], 'completion': 'never mind'}\n"
        "read = Reader()\n",
    ],
    ids=["partial", "object"],
)
def test_an_edit_of_what_is_no_plain_function_is_noticed(code: str, folder: Path, tokenizer: Any) -> None:
    edit(code)
    assert texts(ConversationData("rows.jsonl", format="my_rows.read"), tokenizer) == ["never mind"] * 4
    edit(code.replace("never mind", "who knows"))
    assert texts(ConversationData("rows.jsonl", format="my_rows.read"), tokenizer) == ["who knows"] * 4


def test_a_function_without_source_is_refused(folder: Path, tokenizer: Any) -> None:
    """What it returns may change without a file that says so."""
    with pytest.raises(PostTrainError, match=r"--data.format builtins.abs: its source code is not there"):
        ConversationData("rows.jsonl", format="builtins.abs").build(tokenizer, 256)


def test_validation_data_are_read_by_it_too(folder: Path, tokenizer: Any) -> None:
    data = ConversationData("rows.jsonl", val_path="rows.jsonl", format="my_rows.read")
    data.build(tokenizer, 256)
    assert len(data.val_stores["rows"]) == 4


def test_a_stream_is_read_by_it(folder: Path, tokenizer: Any) -> None:
    edit(READ.replace("(row):", "(row):\n    if row['q'].endswith('0'):\n        return None"))
    data = ConversationData("rows.jsonl", streaming=True, shuffle=False, format="my_rows.read")
    data.build(tokenizer, 256)
    assert data.audit.read_by == "my_rows.read"
    assert data._stream is not None
    stream = data._stream()
    found = iter(stream)
    assert [next(found).line for _ in range(4)] == [2, 3, 4, 2]
    assert stream.counts == {"rows": 8, "left out by my_rows.read": 2}
    before = stream.identity["data"]
    edit("X = 1\n" + READ)
    data.build(tokenizer, 256)
    assert data._stream().identity["data"] != before


def test_preferences_and_prompts_are_read_by_it(folder: Path, tokenizer: Any) -> None:
    edit("def read(row):\n    return {'prompt': row['q'], 'chosen': row['a'], 'rejected': 'no', 'answer': row['a']}\n")
    pairs = PreferenceData("rows.jsonl", format="my_rows.read")
    pairs.build(tokenizer, 256)
    assert [len(tree.responses) for tree in pairs.train_store] == [2] * 4
    prompts = PromptData("rows.jsonl", format="my_rows.read")
    prompts.build(tokenizer, 256)
    assert PromptRecord.of(prompts.train_store[2]).columns["answer"] == "it is 2"


@pytest.mark.parametrize("data", [ConversationData, PreferenceData, PromptData])
def test_a_row_that_it_cannot_read_is_named(data: Any, folder: Path, tokenizer: Any) -> None:
    write([*ROWS, {"q": "what"}])
    told = r"^rows.jsonl:5: my_rows.read fails at my_rows.py:2: KeyError: 'a'; mend it, or the row$"
    edit(READ.replace("}", ", 'chosen': row['a'], 'rejected': 'no'}"))
    with pytest.raises(PostTrainError, match=told):
        data("rows.jsonl", format="my_rows.read").build(tokenizer, 256)
    skipping = data("rows.jsonl", format="my_rows.read", on_bad_row="skip")
    skipping.build(tokenizer, 256)
    assert skipping.audit.files[0].dropped["my_rows.read failed"].lines == [5]
    assert len(skipping.train_store) == 4


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "read = lambda row: [row]",
            r"rows.jsonl:1: my_rows.read returned a list; it must return a row, a dict",
        ),
        ("def reed(row): ...\n", r"--data.format my_rows.read: module `my_rows` \(my_rows.py\) has no `read`; did you"),
        ("read = 3\n", "--data.format my_rows.read is not a function; name one that takes a row"),
        ("read = lambda row: {'x': 1}", "rows.jsonl:1: columns not recognised: x"),
        ("read = lambda row: {1: 'x'}", "rows.jsonl:1: my_rows.read returned a dict whose keys are not all texts"),
        (
            "def read(row):\n    raise ValueError('not\\ntoday')",
            r"my_rows.read fails at my_rows.py:2: ValueError: not today;",
        ),
        ("read = lambda row: None", r"rows.jsonl: no usable row; of 4 rows: 4 left out by my_rows.read"),
    ],
)
def test_what_it_may_not_be(code: str, told: str, folder: Path, tokenizer: Any) -> None:
    edit(code)
    with pytest.raises(PostTrainError, match=told):
        ConversationData("rows.jsonl", format="my_rows.read").build(tokenizer, 256)
