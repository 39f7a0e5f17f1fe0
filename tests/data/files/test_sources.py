"""Reading files: every kind of file gives the same records, and every damage is named with its place."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from helpers.rows import ROWS

from lit_posttrain.data.files.sources import find_sources, read_records
from lit_posttrain.data.formats.conversations import Columns
from lit_posttrain.data.modules.prompts import PromptData
from lit_posttrain.data.rows.beside import THOUGHT_COLUMNS
from lit_posttrain.data.rows.marks import ROW_MARKS
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.types import PromptRecord


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _gz(path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def _json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2))


def _wrapped(path: Path) -> None:
    path.write_text(json.dumps({"data": ROWS}))


def _parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)


def _csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def _tsv(path: Path) -> None:
    _csv(path, "\t")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", _jsonl),
        ("a.jsonl.gz", _gz),
        ("a.json", _json),
        ("b.json", _wrapped),
        ("c.json", _jsonl),
        ("a.ndjson", _jsonl),
        ("a.parquet", _parquet),
        ("a.csv", _csv),
        ("a.tsv", _tsv),
    ],
)
def test_every_kind_of_file(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    path = tmp_path / name
    write(path)
    records = list(read_records(str(path)))
    assert [r.data for r in records] == ROWS
    # a CSV row starts on the physical line below the one its predecessor ended on; every row here has two lines
    lines = [2, 4, 6, 8, 10] if path.suffix in (".csv", ".tsv") else [1, 2, 3, 4, 5]
    assert [r.line for r in records] == lines
    assert {r.file for r in records} == {str(path)}


def test_blank_lines_count_as_lines_and_not_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "a"}\n\n   \n{"text": "b"}', encoding="utf-8")
    assert [(r.line, r.data["text"]) for r in read_records(str(path))] == [(1, "a"), (4, "b")]


def test_what_arrow_adds_is_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import pyarrow

    def calls(name: str, **arguments: Any) -> dict[str, Any]:
        call = {"function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    rows = [
        {"messages": [{"role": "user", "content": "a"}, calls("f", city="Ghent")], "extra": None},
        {"messages": [{"role": "user", "content": "b"}, calls("g", days=[1, 2])], "extra": "x"},
    ]
    table = pyarrow.Table.from_pylist(rows)
    assert table.to_pylist() != rows  # nulls for the other's arguments
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.parquet", "a.arrow", "b.arrow", "saved"):
        assert [r.data for r in read_records(str(tmp_path / name))] == rows, name
    for streaming in (False, True):
        made = datasets.Dataset.from_list(rows)
        loaded = made.to_iterable_dataset() if streaming else made
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, loaded=loaded, **__: loaded)
        monkeypatch.setattr("lit_posttrain.data.files.hf_datasets.missing_reason", lambda *_: None)
        (source,) = find_sources("owner/name", streaming)
        assert [r.data for r in source.records()] == rows
    said = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"limit": None}}}]}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    assert next(read_records(str(tmp_path / "a.jsonl"))).data == {"messages": said}  # somebody wrote this null


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.json"])
def test_marks_of_the_encoding_are_no_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = {"a.jsonl": '{"text": "a"}', "a.json": '[{"text": "a"}]'}.get(name, "text\na")
    path.write_text(f"\ufeff{text}\n", encoding="utf-8")
    assert [r.data for r in read_records(str(path))] == [{"text": "a"}]
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n\ufeff{"text": "\ufeffb"}\n', encoding="utf-8")
    assert [r.data["text"] for r in read_records(str(tmp_path / "b.jsonl"))] == ["a", "\ufeffb"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "A"},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"instruction": "Q", "output": "A", "history": [["a", "b"]]},
        {"prompt": "Q", "responses": [{"text": "A", "rank": 0}, {"text": "B", "rank": 1}]},
        {"frage": "Q", "antwort": "A"},
        {"dialog": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    ],
)
def test_one_object_in_a_json_file_is_a_row(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(row, indent=2))
    assert [r.data for r in read_records(str(path))] == [row]


def test_what_stands_beside_the_rows_of_a_document_is_said_of_each(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"prompt": "what is it", "completion": "a fox"}, {"prompt": "b", "completion": "c", "system": "own"}]
    path.write_text(json.dumps({"version": "1.0", "system": "Be brief", "data": rows}))
    assert [r.data["system"] for r in read_records(str(path))] == ["Be brief", "own"]
    store, audit = build_store([str(path)], tiny.tokenizer(), TokenizeOptions(), str(tmp_path / "cache"))
    assert "Be brief" in tiny.tokenizer().decode(store[0].prompt)
    assert {column: tally.count for column, tally in audit.files[0].unread.items()} == {"version": 2}


@pytest.mark.parametrize("key", [*ROW_MARKS, *THOUGHT_COLUMNS, "history", "images", "annotator1", "winner"])
def test_what_is_known_of_a_document_is_no_column_of_its_rows(key: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"prompt": "what is it", "completion": "a fox"}, {"prompt": "b", "completion": "c"}]
    path.write_text(json.dumps({key: 0, "tools": [{"name": "f"}], "data": rows}))
    store, audit = build_store([str(path)], tiny.tokenizer(), TokenizeOptions(), str(tmp_path / "cache"))
    assert len(store) == 2
    assert audit.files[0].unread[f"document.{key}"].count == 2
    assert [record.data["tools"] for record in read_records(str(path))] == [[{"name": "f"}]] * 2


def test_what_else_stands_beside_the_rows_of_a_document_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"prompt": "what is it", "completion": "a fox"}, {"prompt": "b", "completion": "c", "persona": "own"}]
    path.write_text(json.dumps({"persona": "Be brief", "rows": rows}))
    options = TokenizeOptions(Columns(system="persona"))
    store, audit = build_store([str(path)], tiny.tokenizer(), options, str(tmp_path / "cache"))
    assert ["Be brief" in tiny.tokenizer().decode(store[i].prompt) for i in range(2)] == [True, False]
    assert not audit.files[0].unread
    data = PromptData(str(path), cache_dir=str(tmp_path / "cache"))
    data.build(tiny.tokenizer(), 512)
    assert PromptRecord.of(data.train_store[0]).columns["persona"] == "Be brief"
