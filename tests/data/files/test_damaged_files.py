"""Damaged files are named with their place, damaged rows are bad rows."""

from __future__ import annotations

import csv
import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
from helpers import tiny

from lit_posttrain.data.files.sources import find_sources, read_records
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.data.store.streaming import TreeStream
from lit_posttrain.errors import PostTrainError


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": b}\n',
            r":2: not valid JSON \(Expecting value column 10\); mend or remove",
        ),
        ("a.jsonl", b'{"text": "a"}\n[1, 2]\n', r":2: the row is a list, not an object"),
        ("a.jsonl", b'"text"\n', r":1: the row is a string, not an object"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "\xff"}\n',
            r":2: not UTF-8 \(byte 0xff at column 11\); save the file as",
        ),
        ("a.jsonl", b"", r": the file holds no rows"),
        ("a.csv", b"text\n", r": the file holds no rows"),
        ("a.json", b"[]", r": the file holds no rows"),
        ("a.json", b'[{"text": "a"}, {"text": }]', r": not valid JSON \(Expecting value line 1 column 26\); mend"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', r": not valid JSON \(Expecting ',' or '\]' line 1 column 16\)"),
        ("a.json", b'[{"text": "a"}', r": not valid JSON \(Expecting ',' or '\]'"),
        ("a.json", b'{"x": [], "y": []}', r": one object with 2 lists in it, where rows are expected"),
        ("a.json", b'[{"text": "a"}]\n[{"text": "b"}]\n', r": the list of rows ends, and '\[.*' follows on line 2"),
        ("a.json", b'[{"text": "a"}], {"text": "b"}', r": the list of rows ends, and ', .*' follows on line 1"),
        ("a.json", b'[{"text": "a"},', r": not valid JSON \(Expecting value line 1 column 16\)"),
        ("a.json", b'[{"text": "a"}, \n', r": not valid JSON \(Expecting value line 2"),
        ("a.json", b"[", r": not valid JSON \(Expecting value line 1 column 2\)"),
        ("a.jsonl.gz", b"no gzip", r":1: damaged gzip data"),
        ("a.parquet", b"no parquet", r": not readable as Parquet after row 0"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r":3: 3 cells under 2 columns \(a, b\); mend the row"),
        ("a.csv", b'a,b\n"1,2\n', r":2: not valid CSV"),
        ("a.csv", b"text,label,text\n1,2,3\n", r":1: the column `text` stands twice; rename or remove one"),
        ("a.csv", b"a,b\n1,2\na,b\n3,4\n", r":3: the header line is repeated here; remove the line"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b", "text": "c"}\n', r":2: `text` stands twice; rename or remove"),
        ("a.json", b'[{"text": "b", "text": "c"}]', r":1: `text` stands twice; rename or remove one"),
        ("a.json", b'{"prompt": ["a", "b"], "completion": ["c", "d"]}', r": columns instead of rows \(prompt, com"),
        ("a.json", b'{"prompt": {"0": "a"}, "completion": {"0": "c"}}', r": columns instead of rows \(prompt, com"),
        ("a.json", b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}', r": one object with 2 lists .*train, test"),
        ("a.arrow", b"no arrow", r": not readable as Arrow after row 0"),
        ("a.txt", b"words", r": not a known kind of file; rename or convert it to one of \.jsonl"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PostTrainError, match=message) as error:
        list(read_records(str(path)))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


DIGITS, DEEP = b"1" * 4400, b"[" * 2000


@pytest.mark.parametrize(
    ("value", "said"),
    [(DIGITS, "a number of more than 4,300 digits"), (DEEP, "nested too deeply to read")],
    ids=["long", "deep"],
)
@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", b'{"n": %b}'), ("a.json", b'[{"n": %b}]'), ("b.json", b'{"n": %b}')]
)
def test_json_that_python_does_not_read_is_named(
    tmp_path: Path, name: str, text: bytes, value: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(text % value)
    with pytest.raises(PostTrainError, match=rf"{name}:1: not valid JSON \({said}\)"):
        list(read_records(str(tmp_path / name)))


def test_truncated_gzip_is_not_a_shorter_data_set(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 50)[:-12])
    with pytest.raises(PostTrainError, match="damaged gzip data"):
        list(read_records(str(path)))


def test_wide_csv_cells_leave_the_limit_of_the_process_alone(tmp_path: Path) -> None:
    path, before = tmp_path / "a.csv", csv.field_size_limit()
    path.write_text("text\n" + "x" * (before + 10) + "\n")
    assert len(next(read_records(str(path))).data["text"]) == before + 10
    assert csv.field_size_limit() == before


GOOD = {"prompt": "what is it", "completion": "a fox"}
BROKEN: dict[str, bytes] = {
    "cut off": b'{"prompt": "what is',
    "no JSON": b"what is it",
    "not UTF-8": b'{"prompt": "\xff", "completion": "b"}',
    "column twice": b'{"prompt": "a", "prompt": "b", "completion": "c"}',
    "no object": b"[1, 2]",
    "a text": b'"words"',
    "long number": b'{"prompt": "a", "completion": "b", "n": ' + DIGITS + b"}",
    "deep": b'{"prompt": "a", "completion": "b", "n": ' + DEEP + b"}",
    "long number within": json.dumps(
        {"prompt": "a", "completion": "b", "chat_template_kwargs": DIGITS.decode()}
    ).encode(),
    "deep within": json.dumps({**GOOD, "chat_template_kwargs": DEEP.decode()}).encode(),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_a_bad_row(name: str, first: bool, tmp_path: Path) -> None:
    good, lines = json.dumps(GOOD).encode(), [BROKEN[name], BROKEN[name]]
    lines = [*lines, good] if first else [good, *lines]
    path, cache = tmp_path / "a.jsonl", str(tmp_path / "cache")
    path.write_bytes(b"\n".join([*lines, good.replace(b"fox", b"dog")]) + b"\n")
    where = 1 if first else 2
    with pytest.raises(PostTrainError, match=rf"^{path}:{where}: "):
        build_store([str(path)], tiny.tokenizer(), TokenizeOptions(), cache)
    store, audit = build_store([str(path)], tiny.tokenizer(), TokenizeOptions(on_bad_row="skip"), cache)
    assert (len(store), audit.total.rows, audit.total.dropped_count) == (2, 4, 2)
    assert [tally.lines for tally in audit.files[0].dropped.values()] == [[where, where + 1]]
    assert store.lines.tolist() == [3 if first else 1, 4]
    skip = TokenizeOptions(on_bad_row="skip")
    stream = TreeStream(find_sources(str(path)), tiny.tokenizer(), skip, shuffle=False, buffer=1, seed=0)
    assert stream.preview().total.dropped_count == 2
    assert [tree.line for tree in islice(stream, 2)] == store.lines.tolist()


def test_a_broken_row_of_a_table_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\na,b\na,b,c\nc,d\n")
    options = TokenizeOptions(on_bad_row="skip")
    store, audit = build_store([str(path)], tiny.tokenizer(), options, str(tmp_path / "cache"))
    assert (len(store), audit.files[0].dropped["cells"].lines) == (2, [3])
    path.write_text("prompt,completion\na,b,c\n")
    store, audit = build_store([str(path)], tiny.tokenizer(), options, str(tmp_path / "cache"))
    assert (len(store), audit.total.dropped_count, audit.total.duplicates) == (0, 1, 0)
