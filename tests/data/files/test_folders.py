"""Which files of a folder are read, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny

from lit_posttrain.data.files.sources import find_sources, read_records
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.errors import PostTrainError


def test_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "second"}\n')
    (tmp_path / "a.json").write_text('[{"text": "first"}]')
    (tmp_path / "readme.md").write_text("not data")
    assert [r.data["text"] for r in read_records(str(tmp_path))] == ["first", "second"]
    assert [Path(s.name).name for s in find_sources(str(tmp_path))] == ["a.json", "b.jsonl"]


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
