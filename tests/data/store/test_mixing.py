"""Weighted sources: what an epoch shows, that nothing comes twice too soon, and that a run resumes in the middle."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import conversations, feedback_files
from helpers import tiny
from helpers.runs import Counting, pairs, trainer, write

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.modules.conversation import ConversationData
from lit_posttrain.data.modules.preference import PreferenceData
from lit_posttrain.data.store.kl_pairs import KLPairs
from lit_posttrain.data.store.loader import StepLoader
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.data.store.mixing import Mix
from lit_posttrain.errors import PostTrainError

SIZES = (40, 100, 9, 30)
WEIGHTS = [1.0, 0.25, 3.5, 0.0]
ORIGIN = np.repeat(np.arange(4), SIZES)
BATCH = 8


def mix(batch_size: int = BATCH) -> Mix:
    return Mix(ORIGIN, WEIGHTS, batch_size)


@pytest.mark.parametrize("shuffle", [False, True])
def test_shares_of_an_epoch_are_exact(shuffle: bool) -> None:
    assert (mix().shown, len(mix())) == ([40, 25, 32, 0], 97)
    for epoch in range(5):
        order = mix().order(0, epoch, shuffle)
        assert Counter(ORIGIN[order].tolist()) == {0: 40, 1: 25, 2: 32}


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_row_comes_once_before_any_comes_again(shuffle: bool) -> None:
    epochs = [mix().order(0, epoch, shuffle) for epoch in range(9)]
    dealt = np.concatenate(epochs)
    for source, size in enumerate(SIZES[:3]):
        mine = dealt[ORIGIN[dealt] == source]
        whole = mine[: len(mine) // size * size].reshape(-1, size)
        assert len(whole) >= 2
        for deck in whole:
            assert sorted(deck.tolist()) == np.flatnonzero(source == ORIGIN).tolist()
    quarters = [frozenset(order[ORIGIN[order] == 1].tolist()) for order in epochs]
    assert len(set(quarters[:4])) == 4, "a fraction is another one in the next epoch"
    if shuffle:
        assert not set(quarters[4:8]) & set(quarters[:4]), "and anew, once all have been seen"


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert np.array_equal(mix().order(3, 2), mix().order(3, 2))
    assert not np.array_equal(mix().order(3, 2), mix().order(4, 2))


def test_every_step_has_its_share_of_every_source() -> None:
    order = mix().order(0, 0)
    for start in range(0, len(order) - BATCH, BATCH):
        counts = np.bincount(ORIGIN[order[start : start + BATCH]], minlength=4)
        assert np.abs(counts - BATCH * np.array(mix().shown) / len(mix())).max() < 2


@pytest.mark.parametrize("batch_size", [1, 5, 8, 16, 64])
def test_no_row_comes_twice_in_a_step(batch_size: int) -> None:
    origin, weights = np.repeat([0, 1, 2], [100, 300, 40]), [4.3, 0.4, 1.7]
    for epoch in range(20):
        order = Mix(origin, weights, batch_size).order(1, epoch)
        for start in range(0, len(order), batch_size):
            step = order[start : start + batch_size]
            # of the last source a step of 64 takes 7 rows, of the first 43: more than a third of its 100
            rows = step if batch_size < 64 else step[origin[step] != 0]
            assert len(set(rows.tolist())) == len(rows)


def test_a_source_with_a_weight_is_never_rounded_away() -> None:
    assert Mix(np.array([0, 0, 1]), [1.0, 0.1], 4).shown == [2, 1]


def loader(**options: Any) -> StepLoader:
    return StepLoader(MemoryTrees(conversations(sum(SIZES))), batch_size=BATCH, seed=3, mix=mix(), **options)


def test_resumed_in_the_middle_the_order_is_the_same() -> None:
    whole = loader(accumulate=2)
    assert len(whole) == 2 * 13
    epochs = [[batch.example_ids for batch in whole] for _ in range(3)]
    assert sorted(chain(*epochs[1])) == sorted(mix().order(3, 1).tolist())
    part, again = loader(accumulate=2), loader(accumulate=2)
    list(part)
    list(islice(part, 7))
    again.load_state_dict(part.state_dict())
    assert [batch.example_ids for batch in again] == epochs[1][7:]
    assert [batch.example_ids for batch in again] == epochs[2]


def test_two_ranks_share_the_steps_of_one() -> None:
    alone = [sorted(chain(*steps)) for steps in zip(*[(b.example_ids for b in loader(accumulate=2))] * 2, strict=True)]
    ranks = [[b.example_ids for b in loader(world=2, rank=rank)] for rank in (0, 1)]
    assert [sorted(chain(*step)) for step in zip(*ranks, strict=True)] == alone


def test_a_checkpoint_of_other_weights_is_refused() -> None:
    store = MemoryTrees(conversations(sum(SIZES)))
    plain = StepLoader(store, batch_size=BATCH, seed=3)
    with pytest.raises(PostTrainError, match=r"weights=1 x 40 rows, 0\.25 x 100 rows.* has weights=None"):
        plain.load_state_dict(loader().state_dict())
    state = plain.state_dict()
    del state["weights"]  # of a version before there were any
    plain.load_state_dict(state)
    with pytest.raises(PostTrainError, match=r"weights=None and this run has weights=1 x 40 rows"):
        loader().load_state_dict(state)


def data(tmp_path: Path, weights: Any, **options: Any) -> ConversationData:
    paths = [
        write(tmp_path / f"{n}.jsonl", pairs(100 * i, count)) for i, (n, count) in enumerate((("a", 60), ("b", 8)))
    ]
    return ConversationData(paths, weights=weights, cache_dir=str(tmp_path / "cache"), batch_size=8, **options)


def test_a_run_and_its_audit(tmp_path: Path) -> None:
    module, mixed = Counting(), data(tmp_path, [0.5, 2.0], val_fraction=0.2)
    trainer(tmp_path).fit(module, datamodule=mixed)
    store = mixed.train_store
    counts = np.bincount(store.file_index)
    shown = [round(0.5 * counts[0]), 2 * counts[1]]
    assert np.bincount(store.file_index[module.seen]).tolist() == shown
    first, second = mixed.audit.mix
    assert (first.path, first.examples, first.shown) == (str(tmp_path / "a.jsonl"), counts[0], shown[0])
    assert second.of_examples == shown[1] / sum(shown)
    assert first.of_tokens + second.of_tokens == pytest.approx(1)
    lines = mixed.audit.table().splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("an epoch's mix"))
    assert lines[head + 2].split()[:4] == ["b.jsonl", "2", str(counts[1]), str(shown[1])]
    assert AuditReport.from_json(mixed.audit.to_json()) == mixed.audit


def test_a_folder_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for name in "cd":
        write(tmp_path / "many" / f"{name}.jsonl", pairs(ord(name) * 100, 10))
    one = write(tmp_path / "one.jsonl", pairs(0, 10))
    mixed = ConversationData([str(tmp_path / "many"), one], weights=[0.5, 1.0], cache_dir=str(tmp_path / "cache"))
    mixed.build(tiny.tokenizer())
    assert [(s.examples, s.shown) for s in mixed.audit.mix] == [(20, 10), (10, 10)]


def test_weights_meant_as_shares_are_reported(tmp_path: Path) -> None:
    mixed = data(tmp_path, [0.7, 0.3])
    mixed.build(tiny.tokenizer())
    (warning,) = [line for line in mixed.audit.warnings if "weights" in line]
    assert "make shares of 95.5%, 4.5%; for shares of 70.0%, 30.0% pass --data.weights '[0.311, 1]'" in warning
    right = data(tmp_path, [0.311, 1.0])
    right.build(tiny.tokenizer())
    assert right.audit.mix[0].of_examples == pytest.approx(0.7, abs=0.01)
    assert not any("weights" in line for line in right.audit.warnings)


def test_auxiliary_rows_follow_the_rows(tmp_path: Path) -> None:
    files = feedback_files(tmp_path).paths
    mixed = PreferenceData(files, weights=[2.0, 0.5, 1.0], cache_dir=str(tmp_path / "cache"), batch_size=7)
    mixed.build(tiny.tokenizer())
    store = mixed.train_store
    pairs = {"kl_pairs": KLPairs(store, 64)}
    loader = StepLoader(store, batch_size=7, accumulate=2, mix=mixed._mix, auxiliary=pairs)
    batches = list(loader)
    assert Counter(store.file_index[list(chain(*(b.example_ids for b in batches)))].tolist()) == {0: 34, 1: 8, 2: 17}
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        beside = list(chain(*(batch.example_ids for batch in first.extras["kl_pairs"])))
        assert beside == [*first.example_ids, *second.example_ids]
        assert second.extras == {}


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0], r"--data\.weights has 1 numbers and --data\.path 2 entries"),
        ([1.0, -0.5], r"--data\.weights is 1, -0\.5; a weight says how many times"),
        ([1.0, float("nan")], r"--data\.weights is 1, nan; a weight says"),
        ([0.0, 0.0], r"--data\.weights is 0 for every source, which leaves nothing to train on"),
    ],
)
def test_errors(weights: list[float], says: str, tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=says):
        data(tmp_path, weights)


def test_a_file_that_is_found_twice(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    path = write(tmp_path / "both" / "a.jsonl", pairs(0, 4))
    with pytest.raises(PostTrainError, match=r"a\.jsonl is found twice in --data\.path; name it once"):
        ConversationData([path, str(tmp_path / "both")], weights=[1.0, 2.0], cache_dir=str(tmp_path / "c")).build(
            tiny.tokenizer()
        )
