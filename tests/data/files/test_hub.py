"""Data sets of the hub, saved ones, and those of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.rows import ROWS
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.files.sources import find_sources, read_records
from lit_posttrain.data.modules.conversation import ConversationData
from lit_posttrain.errors import PostTrainError


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
