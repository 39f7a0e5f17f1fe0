"""Reading files: every kind of file gives the same records, and every damage is named with its place."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.files.sources import find_sources, read_records
from lit_posttrain.data.formats.conversations import Columns
from lit_posttrain.data.modules.conversation import ConversationData
from lit_posttrain.data.modules.prompts import PromptData
from lit_posttrain.data.rows.beside import THOUGHT_COLUMNS
from lit_posttrain.data.rows.marks import ROW_MARKS
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.data.store.streaming import TreeStream
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import PromptRecord

ROWS = [{"prompt": f"question {i}", "completion": f"answer\n{i}, with é"} for i in range(5)]


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


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "second"}\n')
    (tmp_path / "a.json").write_text('[{"text": "first"}]')
    (tmp_path / "readme.md").write_text("not data")
    assert [r.data["text"] for r in read_records(str(tmp_path))] == ["first", "second"]
    assert [Path(s.name).name for s in find_sources(str(tmp_path))] == ["a.json", "b.jsonl"]


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


@pytest.mark.parametrize(
    ("files", "read", "left_out"),
    [
        ("train-00000-of-00002.jsonl train-00001-of-00002.jsonl test-00000-of-00001.jsonl", [0, 1], "test-00000"),
        ("train.jsonl test.jsonl validation.jsonl", [0], "test.jsonl, validation.jsonl"),
        ("chat_train.json maths.jsonl chat_eval.json", [0, 1], "chat_eval.json"),
        ("a.jsonl b.jsonl", [0, 1], ""),
        ("dev.jsonl sft_dev.jsonl", [0, 1], ""),
        ("contest.jsonl trains.jsonl developer.jsonl latest.jsonl", [0, 1, 2, 3], ""),
        ("train.jsonl dataset_info.json state_of_things.jsonl", [0, 2], ""),
    ],
)
def test_rows_to_measure_on_are_not_mixed_into_a_folders_others(
    tmp_path: Path, files: str, read: list[int], left_out: str
) -> None:
    names = files.split()
    for name in names:
        (tmp_path / name).write_text(json.dumps({"text": name}))
    sources = find_sources(str(tmp_path))
    assert sorted(Path(s.name).name for s in sources) == sorted(names[i] for i in read)
    assert [left_out in s.beside for s in sources if s.beside] == [True] * bool(left_out)


@pytest.mark.parametrize("files", ["test.jsonl validation.jsonl", "test.jsonl more.jsonl"])
def test_a_folder_that_does_not_say_what_is_meant_is_refused(tmp_path: Path, files: str) -> None:
    for name in files.split():
        (tmp_path / name).write_text('{"text": "a"}')
    with pytest.raises(PostTrainError, match=r"holds evaluation files \(.*test.jsonl.*name the files to read, such as"):
        find_sources(str(tmp_path))


def test_the_audit_says_what_was_not_read(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"prompt": "what is it", "completion": "a fox"}\n')
    _, audit = build_store([str(tmp_path)], tiny.tokenizer(), TokenizeOptions(), str(tmp_path / "cache"))
    assert any("test.jsonl" in line for line in audit.warnings)
    assert (len(audit.files), audit.total.rows) == (1, 1)


def test_saved_data_sets(tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict({"x": made, "y": made}).save_to_disk(str(tmp_path / "three"))
    assert [r.data for r in read_records(str(tmp_path / "one"))] == ROWS
    assert [r.line for r in read_records(str(tmp_path / "two"))] == [1, 2, 3, 4, 5]
    assert len(list(read_records(str(tmp_path / "two" / "test")))) == 1
    with pytest.raises(PostTrainError, match=r"holds the splits x, y; name one, such as .*three/x"):
        find_sources(str(tmp_path / "three"))


def test_builtin_data_and_the_list_of_it() -> None:
    assert next(read_records("builtin:demo_sft")).file == "builtin:demo_sft"
    with pytest.raises(PostTrainError, match=r"^builtin:nope: no such built-in data set; there are: .*demo_sft"):
        find_sources("builtin:nope")


def test_hub_name_goes_to_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(name: str, config: str | None, split: str) -> Any:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("lit_posttrain.data.files.hf_datasets.missing_reason", lambda *_: None)
    assert [r.data for r in read_records("owner/name:train[:5]")] == ROWS
    digests = {source.digest() for source in find_sources("owner/name/main")}
    assert asked == [("owner/name", None, "train[:5]"), ("owner/name", "main", "train")]
    assert len(digests) == 1


def test_slices_of_a_split_are_different_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    import datasets

    datasets.Dataset.from_list([{"text": str(i)} for i in range(10)]).save_to_disk(tmp_path / "hub")
    whole = datasets.load_from_disk(tmp_path / "hub")
    cut = {"train[:90%]": range(9), "train[90%:]": range(9, 10), "train": range(10), "train[:5]": range(5)}

    def load(name: str, config: str | None, split: str) -> Any:
        return whole.select(cut[split])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("lit_posttrain.data.files.hf_datasets.missing_reason", lambda *_: None)
    sources = [find_sources(f"owner/name:{split}")[0] for split in cut]
    assert all(source.files == sources[0].files != () for source in sources)
    assert len({source.digest() for source in sources}) == len(cut)
    data = ConversationData("owner/name:train[:90%]", val_path="owner/name:train[90%:]", cache_dir=str(tmp_path))
    data.build(tokenizer)
    (validation,) = data.val_stores.values()
    assert (len(data.train_store), len(validation)) == (9, 1)
    assert "9" in tokenizer.decode(validation[0].prompt)


def test_a_saved_set_is_read_whole_whatever_it_shows(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_list([{"prompt": "Q", "completion": "A", "n": 1}])
    saved.with_format("numpy", columns=["n"]).save_to_disk(tmp_path / "saved")
    assert [r.data for r in read_records(str(tmp_path / "saved"))] == [{"prompt": "Q", "completion": "A", "n": 1}]


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


def test_missing_things_come_with_suggestions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr("lit_posttrain.data.files.hf_datasets.missing_reason", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "empty").mkdir(parents=True)
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a"}\n')
    for slip in ("data/trainn.jsonl", "data/train"):
        with pytest.raises(
            PostTrainError,
            match=r"no such file, folder or hub data set \(looked in .*\); did you mean data/train\.jsonl\?",
        ):
            find_sources(slip)
    with pytest.raises(
        PostTrainError, match=r"hub data set; give a path .* \(ConnectionError: Couldn't reach the hub\)$"
    ):
        find_sources("nobody/nothing")
    with pytest.raises(
        PostTrainError, match=r"empty: no \.jsonl, .* file directly in this folder \(it holds nothing\)"
    ):
        find_sources("data/empty")


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


def test_a_folder_names_what_it_does_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "more" / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    row = json.dumps({"prompt": "what is it", "completion": "a fox"}) + "\n"
    for name in ("a.jsonl", "e.ndjson", "b.jsonl.zst", "c.json.gz", "d.txt", "more/deep/f.jsonl"):
        (folder / name).write_text(row)
    for name in ("README", "README.md", "LICENSE", "LICENSE.txt", ".DS_Store", "dataset_infos.json", "load.py"):
        (folder / name).write_text("no data")
    sources = find_sources(str(folder))
    assert [Path(source.name).name for source in sources] == ["a.jsonl", "e.ndjson"]
    _, audit = build_store([str(folder)], tiny.tokenizer(), TokenizeOptions(), str(tmp_path / "cache"))
    (line,) = [line for line in audit.warnings if "not read" in line]
    assert line.startswith(f"{folder}: not read: b.jsonl.zst, c.json.gz, d.txt, more/ (")
    for name in ("b.jsonl.zst", "c.json.gz", "d.txt", "more/deep/f.jsonl"):
        (folder / name).unlink()
    assert not any(source.beside for source in find_sources(str(folder)))
    (folder / "test.jsonl").write_text(row)
    (folder / "train.jsonl").write_text(row)
    (folder / "x.zip").write_text(row)
    beside = find_sources(str(folder))[0].beside
    assert "test.jsonl" in beside
    assert "x.zip" in beside


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
    made = {"shuffle": False, "buffer": 1, "seed": 0}
    stream = TreeStream(find_sources(str(path)), tiny.tokenizer(), TokenizeOptions(on_bad_row="skip"), **made)
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
