"""The data module: with a trainer, without one, and its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from helpers.runs import Counting, pairs, trainer, write

from lit_posttrain.data.formats.conversations import Columns
from lit_posttrain.data.modules.conversation import ConversationData
from lit_posttrain.errors import PostTrainError


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write(tmp_path / "train.jsonl", pairs(0, 100))


def data(train: str, tmp_path: Path, **options: Any) -> ConversationData:
    return ConversationData(train, cache_dir=str(tmp_path / "cache"), **options)


def test_a_run_sees_every_row_once(train: str, tmp_path: Path) -> None:
    module, module_data = Counting(), data(train, tmp_path, val_fraction=0.2, batch_size=8)
    run = trainer(tmp_path, accumulate_grad_batches=2)
    run.fit(module, datamodule=module_data)
    kept, aside = len(module_data.train_store), len(module_data.val_stores["held_out"])
    assert (kept + aside, sorted(module.seen)) == (100, list(range(kept)))
    assert run.global_step == -(-kept // 8)
    assert module.validated == {0: aside}


def test_with_validation_files_nothing_is_held_out(train: str, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", pairs(start, 10)) for name, start in (("a", 200), ("b", 300))]
    module, module_data = Counting(), data(train, tmp_path, val_path=paths, val_fraction=0.2, batch_size=8)
    trainer(tmp_path).fit(module, datamodule=module_data)
    assert sorted(module.seen) == list(range(100))
    assert module_data.audit.held_out == 0
    assert module.validated == {0: 10, 1: 10}
    assert module_data.evaluated_rows("validate") == dict.fromkeys(paths, 10)


def test_a_run_without_validation(train: str, tmp_path: Path) -> None:
    module = Counting()
    trainer(tmp_path).fit(module, datamodule=data(train, tmp_path))
    assert len(module.seen) == 100
    assert module.validated == {}


def test_test_path(train: str, tmp_path: Path) -> None:
    module, other = Counting(), write(tmp_path / "other.jsonl", pairs(300, 7))
    trainer(tmp_path).test(module, datamodule=data(train, tmp_path, test_path=other, val_fraction=0.2), verbose=False)
    assert module.validated == {0: 7}


def test_build_without_a_trainer(train: str, tmp_path: Path) -> None:
    built = data(train, tmp_path, val_fraction=0.3)
    with pytest.raises(PostTrainError, match="has not been read yet"):
        built.train_store  # noqa: B018
    built.build(tiny.tokenizer())
    hashes = built.train_store.row_hash, built.val_stores["held_out"].row_hash
    assert not np.isin(*hashes).any()
    assert built.audit.held_out == len(hashes[1])
    assert built.audit.max_length == 2048
    built.build(tiny.tokenizer(), max_positions=64)
    assert built.audit.max_length == 64


def test_the_held_out_rows_do_not_depend_on_the_cache_or_the_share_of_others(train: str, tmp_path: Path) -> None:
    small, large = data(train, tmp_path, val_fraction=0.1), data(train, tmp_path / "elsewhere", val_fraction=0.4)
    for built in (small, large):
        built.build(tiny.tokenizer())
    assert np.isin(small.val_stores["held_out"].row_hash, large.val_stores["held_out"].row_hash).all()


def test_validation_rows_in_the_training_data_are_reported(train: str, tmp_path: Path) -> None:
    val = write(tmp_path / "val.jsonl", pairs(95, 10))
    built = data(train, tmp_path, val_path=val)
    built.build(tiny.tokenizer())
    assert built.audit.validation["val"].in_training == 5
    assert "val: 5 of 10 rows also in the training data; remove them from one side" in built.audit.warnings


def test_names_of_validation_sets_are_short_and_unique(train: str, tmp_path: Path) -> None:
    paths = []
    for folder in ("maths", "chat", "held_out"):
        (tmp_path / folder).mkdir()
        paths.append(write(tmp_path / folder / "dev.jsonl", pairs(200, 2)))
    paths.append(write(tmp_path / "held_out.jsonl", pairs(300, 2)))
    built = data(train, tmp_path, val_path=[*paths, paths[0]])
    built.build(tiny.tokenizer())
    folder = tmp_path.name
    assert list(built.val_stores) == ["dev", "chat_dev", "held_out_dev", f"{folder}_held_out", "maths_dev"]


def test_named_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"frage": "a", "antwort": "b"}])
    built = data(path, tmp_path, columns=Columns(prompt="frage", completion="antwort"))
    built.build(tiny.tokenizer())
    assert built.audit.files[0].format == "frage/antwort"


def test_errors(train: str, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"val_fraction is 1\.5; it must be at least 0 and below 1"):
        data(train, tmp_path, val_fraction=1.5)
    with pytest.raises(PostTrainError, match=r"--data\.path names nothing"):
        ConversationData([])
    with pytest.raises(PostTrainError, match=r"--data\.path names a\.jsonl twice; to show its rows twice, pass --data"):
        ConversationData(["a.jsonl", "b.jsonl", "a.jsonl"])
    with pytest.raises(PostTrainError, match=r"--data\.seed is -1; it must be at least 0"):
        data(train, tmp_path, seed=-1)
    with pytest.raises(PostTrainError, match=r"max_length is 300 and the model takes 128 positions; pass at most 128"):
        data(train, tmp_path, max_length=300).build(tiny.tokenizer(), 128)
    with pytest.raises(PostTrainError, match="max_length is 1; it must be at least 2"):
        data(train, tmp_path, max_length=1).build(tiny.tokenizer())
    with pytest.raises(
        PostTrainError, match=r"train.jsonl: no usable row; of 100 rows: 100 prompt alone fills max_length"
    ):
        data(train, tmp_path, max_length=4).build(tiny.tokenizer())
    with pytest.raises(PostTrainError, match=r"ConversationData needs a module with `tokenizer`, `max_positions`"):
        data(train, tmp_path).prepare_data()


def test_a_share_that_holds_out_nothing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"no usable row; of 1 rows: 1 held out .*; pass --data.val_fraction 0"):
        data(write(tmp_path / "one.jsonl", pairs(0, 1)), tmp_path, val_fraction=0.9999).build(tiny.tokenizer())
    built = data(write(tmp_path / "a.jsonl", pairs(0, 3)), tmp_path, val_fraction=0.001)
    built.build(tiny.tokenizer())
    assert built.val_stores == {}
    assert "val_fraction 0.001 holds out none of 3 rows; raise it, or give val_path" in built.audit.warnings
