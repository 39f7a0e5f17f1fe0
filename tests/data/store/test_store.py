"""Trees to disk and back, for any number of responses, and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.data.store.writer import TreeStoreWriter
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Response, Tree


def _ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def _mask(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.bool_)


TREES = [
    Tree(_ids(1, 2, 3), [Response(_ids(4, 5), _mask(1, 1))], file="a.jsonl", line=1),
    Tree(_ids(6, 7), [], file="a.jsonl", line=2),
    Tree(
        _ids(8, 9),
        [
            Response(_ids(10), _mask(1), {"rank": 0.0, "margin": 2.5}),
            Response(_ids(11, 12, 13), _mask(1, 0, 1), {"rank": 1.0, "flip_prob": 0.25}),
            Response(_ids(14, 15), _mask(0, 1), {"rank": 3.0, "cost": -1.5}),
        ],
        file="b.jsonl",
        line=7,
    ),
    Tree(_ids(1, 2), [Response(_ids(3), _mask(1))], prompt_loss_mask=_mask(1, 1), file="b.jsonl", line=8),
    Tree(_ids(), [Response(_ids(3, 4), _mask(1, 1))], file="b.jsonl", line=9),
]


@pytest.fixture
def store(tmp_path: Path) -> TreeStore:
    return _write(tmp_path / "store", TREES)


def _write(folder: Path, trees: list[Tree]) -> TreeStore:
    with TreeStoreWriter(folder) as writer:
        for index, tree in enumerate(trees):
            writer.append(tree, row_hash=2**64 - 1 - index)
        return writer.finish({"note.txt": "kept"})


def _same(a: Tree, b: Tree) -> None:
    np.testing.assert_array_equal(a.prompt, b.prompt)
    assert (a.source, len(a.responses)) == (b.source, len(b.responses))
    assert (a.prompt_loss_mask is None) == (b.prompt_loss_mask is None)
    if a.prompt_loss_mask is not None and b.prompt_loss_mask is not None:
        np.testing.assert_array_equal(a.prompt_loss_mask, b.prompt_loss_mask)
    for x, y in zip(a.responses, b.responses, strict=True):
        np.testing.assert_array_equal(x.tokens, y.tokens)
        np.testing.assert_array_equal(x.loss_mask, y.loss_mask)
        assert x.labels == y.labels
        assert (x.tokens.dtype, x.loss_mask.dtype) == (np.dtype(np.int32), np.dtype(np.bool_))


def test_round_trip(store: TreeStore) -> None:
    assert len(store) == 5
    for index, tree in enumerate(TREES):
        _same(store[index], tree)
    _same(store[-1], TREES[-1])
    with pytest.raises(IndexError):
        store[5]


def test_columns(store: TreeStore) -> None:
    assert store.prompt_lengths.tolist() == [3, 2, 2, 2, 0]
    assert store.lengths.tolist() == [5, 2, 8, 3, 2]
    assert store.longest_branch.tolist() == [5, 2, 5, 3, 2]
    assert store.num_responses.tolist() == [1, 0, 3, 1, 1]
    # the first token of a sequence is never a target: of a counted prompt, or of a response without one
    assert store.units["tokens"].tolist() == [2, 0, 4, 2, 1]
    assert store.files == ["a.jsonl", "b.jsonl"]
    assert store.file_index.tolist() == [0, 0, 1, 1, 1]
    assert store.lines.tolist() == [1, 2, 7, 8, 9]
    assert store.row_hash.tolist() == [2**64 - 1 - i for i in range(5)]
    assert {column.dtype for column in (store.lengths, store.file_index, store.lines)} == {np.dtype(np.int64)}


def test_a_batch_may_write_into_its_arrays(store: TreeStore) -> None:
    store[0].prompt[0] = 99
    assert store[0].prompt[0] == 1


def test_select_is_a_view(store: TreeStore) -> None:
    view = store.select([2, 0])
    assert (len(view), view.lengths.tolist(), view.files) == (2, [8, 5], store.files)
    _same(view[0], TREES[2])
    _same(view.select([1])[0], TREES[0])
    assert len({store.fingerprint, view.fingerprint, store.select([0, 2]).fingerprint}) == 3
    assert len(store) == 5


def test_fingerprint_is_of_the_content(store: TreeStore, tmp_path: Path) -> None:
    assert _write(tmp_path / "again", TREES).fingerprint == store.fingerprint
    changed = [*TREES[:-1], Tree(_ids(), [Response(_ids(3, 5), _mask(1, 1))], file="b.jsonl", line=9)]
    assert _write(tmp_path / "changed", changed).fingerprint != store.fingerprint
    cut_elsewhere = [Tree(_ids(1, 2), [Response(_ids(3, 4, 5), _mask(0, 1, 1))], file="a.jsonl", line=1), *TREES[1:]]
    assert _write(tmp_path / "cut", cut_elsewhere).fingerprint != store.fingerprint


def test_an_empty_store(tmp_path: Path) -> None:
    store = _write(tmp_path / "empty", [])
    assert (len(store), store.lengths.tolist()) == (0, [])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_half_written_stays(tmp_path: Path, error: type[BaseException]) -> None:
    def write_half() -> None:
        with TreeStoreWriter(tmp_path / "store") as writer:
            writer.append(TREES[0])
            raise error

    with pytest.raises(error):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_the_slower_of_two_writers_takes_the_finished_folder(tmp_path: Path) -> None:
    with TreeStoreWriter(tmp_path / "store") as slow:
        slow.append(TREES[0])
        quick = _write(tmp_path / "store", TREES)
        assert len(slow.finish()) == len(quick) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(PostTrainError, match=r"no data can be written here .*--data.cache_dir"),
        TreeStoreWriter(tmp_path / "file" / "store"),
    ):
        pass
