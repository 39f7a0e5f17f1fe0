"""Streams: the trees of a store in a shuffled order, planned in whole steps, resumed at any place."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cases import METHODS, build, comparison_files, conversation_files, feedback_files
from helpers import tiny
from helpers.runs import Counting, pairs, quiet_trainer, trainer, write

from lit_posttrain import ModelSpec, PostTrainError
from lit_posttrain.callbacks import LastCheckpoint
from lit_posttrain.data.files.sources import find_sources
from lit_posttrain.data.modules.conversation import ConversationData
from lit_posttrain.data.store.build import TokenizeOptions, build_store
from lit_posttrain.data.store.loader import StepLoader
from lit_posttrain.data.store.stream_loader import StreamLoader
from lit_posttrain.data.store.streaming import TreeStream
from lit_posttrain.types import Tree, TreeBatch

ROWS = 150
OPTIONS = TokenizeOptions(max_length=64, overlong="split", on_bad_row="skip")


def rows(first: int, count: int) -> list[dict[str, str]]:
    """Every seventh row is bad, every eleventh is split in pieces."""
    made = pairs(first, count)
    for number, row in enumerate(made):
        if number % 7 == 3:
            row["completion"] = " "
        elif number % 11 == 5:
            row["completion"] += " fox" * 99
    return made


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [write(tmp_path / f"{name}.jsonl", rows(1000 * n, ROWS // 3)) for n, name in enumerate("abc")]


def stream(files: list[str], **options: Any) -> TreeStream:
    sources = [source for file in files for source in find_sources(file)]
    return TreeStream(sources, tiny.tokenizer(), OPTIONS, **{"shuffle": True, "buffer": 20, "seed": 3, **options})


def loader(files: list[str], **options: Any) -> StreamLoader:
    return StreamLoader(stream(files), **{"batch_size": 8, "steps": 60, "accumulate": 2, **options})


def key(tree: Tree) -> tuple[str, bytes]:
    return tree.source, b"".join(part.tobytes() for part in (tree.prompt, *(r.tokens for r in tree.responses)))


def same(one: TreeBatch, other: TreeBatch) -> bool:
    return one.denominators == other.denominators and torch.equal(one.input_ids, other.input_ids)


def test_every_pass_has_the_trees_of_a_store(files: list[str], tmp_path: Path) -> None:
    store, audit = build_store(files, tiny.tokenizer(), OPTIONS, str(tmp_path / "cache"))
    expected, size = [key(store[i]) for i in range(len(store))], len(store)
    assert [key(t) for t in islice(stream(files, shuffle=False), 2 * size)] == 2 * expected
    shuffled = stream(files)
    passes = [[key(t) for t in islice(it, size)] for it in [iter(shuffled)] for _ in range(2)]
    assert [sorted(one) for one in passes] == 2 * [sorted(expected)]
    assert len({tuple(one) for one in (*passes, expected)}) == 3
    assert shuffled.place()["pass"] == 1
    expected_counts = {"rows": ROWS, **audit.total.findings()}
    assert set(expected_counts) == {"rows", "empty completion", "split in pieces"}
    in_order = stream(files, shuffle=False)
    list(islice(in_order, size))
    assert in_order.counts == expected_counts, "of one pass, all of it"


def stream_counts(files: list[str], trees: int) -> dict[str, int]:
    made = stream(files)
    list(islice(made, trees))
    return made.counts


def test_what_is_dropped_is_counted_and_said(files: list[str], caplog: pytest.LogCaptureFixture) -> None:
    assert set(stream_counts(files, 200)) == {"rows", "empty completion", "split in pieces"}
    assert "dropped, empty completion (" in caplog.text
    assert ".jsonl:" in caplog.text
    caplog.clear()
    list(islice(stream(files, quiet=True), 200))
    assert caplog.text == "", "one process of several speaks"


def test_what_is_not_used_is_counted_of_a_stream_too(tmp_path: Path) -> None:
    thoughts = {"role": "assistant", "content": "b", "timestamp": 3, "name": "bob"}
    made = [{"messages": [{"role": "user", "content": "a"}, thoughts], "id": number} for number in range(9)]
    template = tiny.CHATML.replace("message['content']", "message['content'] + (message.name or '')")
    sources = find_sources(write(tmp_path / "a.jsonl", made))
    found = TreeStream(sources, tiny.tokenizer(template), OPTIONS, shuffle=False, buffer=1, seed=0)
    list(islice(found, 9))
    assert found.findings() == "9 with `id` not used, 9 with `message.timestamp` not used"
    assert found.preview().total.unread["id"].count == 9


def test_resumed_anywhere_the_rest_is_the_same(files: list[str]) -> None:
    """Through two ends of a pass, in and between steps, chunks and pieces of a row."""
    whole = loader(files)
    batches, counts = [], []
    for batch in islice(whole, 100):
        batches.append(batch)
        counts.append(dict(whole.stream.counts))
    assert whole.stream.place()["pass"] >= 2
    for done in range(1, 99):
        part, again = loader(files), loader(files)
        list(islice(part, done))
        again.load_state_dict(json.loads(json.dumps(part.state_dict())))
        for place, batch in enumerate(islice(again, 2), done):
            assert same(batch, batches[place]), done
            assert again.stream.counts == counts[place]


def test_steps_are_whole_and_know_their_denominators(files: list[str]) -> None:
    for first, second in zip(*[islice(loader(files), 40)] * 2, strict=True):
        assert first.denominators == second.denominators
        assert first.num_trees + second.num_trees == first.denominators["trees"] == 8
        assert len(first.target_ids) + len(second.target_ids) == first.denominators["tokens"]


def test_two_ranks_take_their_parts_of_the_same_steps(files: list[str]) -> None:
    alone = loader(files)
    ranks = [loader(files, accumulate=1, world=2, rank=rank) for rank in (0, 1)]
    steps = zip(*[islice(alone, 40)] * 2, *(islice(r, 20) for r in ranks), strict=True)
    for first, second, left, right in steps:
        assert same(first, left)
        assert same(second, right)


def test_a_state_of_something_else_is_refused(files: list[str], tmp_path: Path) -> None:
    state = loader(files).state_dict()
    with pytest.raises(PostTrainError, match=r"shuffle_buffer=20 and this run has shuffle_buffer=21"):
        StreamLoader(stream(files, buffer=21), batch_size=8, steps=60, accumulate=2).load_state_dict(state)
    with pytest.raises(PostTrainError, match=r"trained on .*a\.jsonl.* and this run takes .*b\.jsonl"):
        loader(files[1:]).load_state_dict(state)
    Path(files[0]).write_text(Path(files[0]).read_text() + json.dumps(pairs(0, 1)[0]) + "\n")
    with pytest.raises(PostTrainError, match=r"a\.jsonl.*: the rows, or their tokens, have changed since"):
        loader(files).load_state_dict(state)
    store, _ = build_store(files, tiny.tokenizer(), OPTIONS, str(tmp_path / "cache"))
    with pytest.raises(PostTrainError, match="trained with streaming=True and this run has streaming=False"):
        StepLoader(store, batch_size=8, seed=3, accumulate=2).load_state_dict(state)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_file_is_the_same_by_its_whole_path(
    streaming: bool, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(file: str) -> StreamLoader | StepLoader:
        if streaming:
            return loader([file])
        return StepLoader(build_store([file], tiny.tokenizer(), OPTIONS, str(tmp_path / "cache"))[0], batch_size=8)

    monkeypatch.chdir(Path(files[0]).parent)
    state = made(Path(files[0]).name).state_dict()
    monkeypatch.chdir(tmp_path.parent)
    made(files[0]).load_state_dict(state)
    Path(files[0]).write_text(Path(files[0]).read_text() + json.dumps(pairs(0, 1)[0]) + "\n")
    with pytest.raises(PostTrainError, match=r"a\.jsonl: the rows, or their tokens, have changed since"):
        made(files[0]).load_state_dict(state)


def test_who_meets_a_bad_row_may_skip_such_rows_and_go_on(files: list[str]) -> None:
    strict = TreeStream(
        find_sources(files[0]), tiny.tokenizer(), replace(OPTIONS, on_bad_row="error"), shuffle=False, buffer=1, seed=3
    )
    trees = iter(strict)
    with pytest.raises(PostTrainError, match=r"a\.jsonl:4: .* \(or drop such rows with --data\.on_bad_row skip\)"):
        next(trees)
    assert strict.identity == stream(files[:1], shuffle=False, buffer=1).identity
    assert strict.identity != stream(files[1:2], shuffle=False, buffer=2).identity


def test_a_later_file_of_unknown_columns_is_found_at_once(files: list[str], tmp_path: Path) -> None:
    strange = write(tmp_path / "strange.jsonl", [{"frage": "a", "antwort": "b"}])
    with pytest.raises(PostTrainError, match=r"strange\.jsonl:1: columns not recognised"):
        stream([*files, strange]).preview()


def test_a_pass_without_a_usable_row(tmp_path: Path) -> None:
    empty = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": " "}] * 3)
    with pytest.raises(PostTrainError, match=r"a\.jsonl: no usable row; 3 empty completion"):
        next(iter(stream([empty])))


def data(files: list[str], tmp_path: Path, **options: Any) -> ConversationData:
    own = {"streaming": True, "on_bad_row": "skip", "cache_dir": str(tmp_path / "cache"), "batch_size": 8, **options}
    return ConversationData(files, **own)


def test_a_run_with_validation_and_its_audit(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    val = write(tmp_path / "val.jsonl", pairs(5000, 9))
    module, streamed = Counting(), data(files, tmp_path, val_path=val)
    run = trainer(tmp_path, max_epochs=-1, max_steps=10, accumulate_grad_batches=2, val_check_interval=10)
    run.fit(module, datamodule=streamed)
    assert (run.global_step, len(module.seen), module.validated) == (10, 80, {0: 18})
    assert streamed.audit.first_rows == ROWS
    assert streamed.audit.table().startswith("first 150 rows of a stream\n")
    assert "rows of the stream, each counted in every pass: " in caplog.text
    assert not (tmp_path / "cache" / "tokens.bin").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 1, "the validation data alone is tokenised beforehand"


class Predicting(Counting):
    def predict_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        raise AssertionError("there is nothing to predict")


def test_what_needs_all_rows_is_refused(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(PostTrainError, match=r"how long to train, such as --trainer\.max_steps 1000"):
        trainer(tmp_path).fit(Counting(), datamodule=data(files, tmp_path))
    with pytest.raises(PostTrainError, match=r"max_epochs 1 with streaming: .* leave max_epochs out"):
        trainer(tmp_path, max_steps=2).fit(Counting(), datamodule=data(files, tmp_path))
    with pytest.raises(PostTrainError, match=r"--data\.weights multiply the rows of each source"):
        data(files, tmp_path, weights=[1.0, 1.0, 2.0])
    with pytest.raises(PostTrainError, match=r"name a file with --data\.val_path, or pass --data\.val_fraction 0"):
        data(files, tmp_path, val_fraction=0.1)
    with pytest.raises(PostTrainError, match=r"shuffle_buffer is 0; it must be at least 1"):
        data(files, tmp_path, shuffle_buffer=0)
    with pytest.raises(PostTrainError, match=r"nothing to predict on: a stream is for training"):
        trainer(tmp_path, max_epochs=-1, max_steps=1).predict(Predicting(), datamodule=data(files, tmp_path))


FILES = {"sft": conversation_files, "dpo": comparison_files, "kto": feedback_files}


class Keep(pl.Callback):
    """Keeps the checkpoint of the fifth step too, as a kill would leave it."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        last, kept = (Path(trainer.default_root_dir) / name for name in ("last.ckpt", "killed"))
        if trainer.global_step == 5 and last.exists() and not kept.exists():
            kept.mkdir()
            shutil.copy(last, kept)


def fit(method: str, model: Path, home: Path, name: str, steps: int) -> dict[str, torch.Tensor]:
    """Train on a stream, from last.ckpt where it is there; the weights."""
    pl.seed_everything(0, verbose=False)
    folder = home / name
    last, known = folder / "last.ckpt", FILES[method](home)
    streamed = type(known)(known.paths, streaming=True, shuffle_buffer=9, batch_size=7, seed=3)
    run = quiet_trainer(
        LastCheckpoint(every_n_steps=1),
        Keep(),
        max_steps=steps,
        accumulate_grad_batches=2,
        default_root_dir=folder,
    )
    module = METHODS[method].build(ModelSpec(str(model)))
    module.optim = replace(module.optim, schedule="constant", warmup_ratio=0.0)
    run.fit(module, datamodule=streamed, ckpt_path=str(last) if last.exists() else None)
    assert run.global_step == steps
    return {name: weight.clone() for name, weight in module.state_dict().items()}


@pytest.mark.parametrize("method", FILES)
def test_killed_or_prolonged_it_ends_as_if_never_stopped(method: str, tiny_model: Path, tmp_path: Path) -> None:
    whole = fit(method, tiny_model, tmp_path, "whole", 12)
    first = fit(method, tiny_model, tmp_path, "part", 5)
    rest = fit(method, tiny_model, tmp_path, "part", 12)
    killed = fit(method, tiny_model, tmp_path, "whole/killed", 12)
    assert any(not torch.equal(first[name], rest[name]) for name in rest)
    assert all(torch.equal(whole[name], rest[name]) for name in rest)
    assert all(torch.equal(whole[name], killed[name]) for name in rest)


def test_a_method_sees_to_its_rows_as_they_come(tiny_model: Path, tmp_path: Path) -> None:
    known = feedback_files(tmp_path)
    module = build("dpo", tiny_model)
    streamed = type(known)(known.paths, streaming=True)
    with pytest.raises(PostTrainError, match=r"feedback-\d\.jsonl:\d+: no two responses to compare"):
        trainer(tmp_path, max_epochs=-1, max_steps=2).fit(module, datamodule=streamed)


def test_kto_takes_zero_for_a_step_that_asks_one_thing(tiny_model: Path, tmp_path: Path) -> None:
    """As validation does, and not z_0 of the step before."""
    known = feedback_files(tmp_path)
    same = write(
        tmp_path / "same.jsonl", [{"prompt": "why", "completion": f"so {i}", "label": i % 2 > 0} for i in range(9)]
    )
    val = write(tmp_path / "val.jsonl", [{"prompt": "why", "completion": "so", "label": True}] * 2)
    module = build("kto", tiny_model)
    options: dict[str, Any] = {"shuffle": False, "streaming": True, "cache_dir": str(tmp_path / "cache")}
    seen = ZSeen()
    run = trainer(tmp_path, seen, max_epochs=-1, max_steps=2, val_check_interval=2, accumulate_grad_batches=2)
    run.fit(module, datamodule=type(known)([known.paths[0], same], batch_size=17, val_path=val, **options))
    run = trainer(tmp_path, seen, max_epochs=-1, max_steps=1)
    run.fit(module, datamodule=type(known)(same, batch_size=9, **options))
    assert seen.moved[-1] == 0.0
    with pytest.raises(
        PostTrainError, match=r"--data\.batch_size 1 with --data\.streaming: KTO compares the rows of a"
    ):
        trainer(tmp_path, max_epochs=-1, max_steps=1).fit(
            build("kto", tiny_model), datamodule=type(known)(same, batch_size=1, **options)
        )


class ZSeen(pl.Callback):
    """z_0 of every training step."""

    def __init__(self) -> None:
        self.moved: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.moved.append(float(pl_module._moved))


def test_prompts_of_a_stream_are_those_of_its_validation_set(files: list[str], tmp_path: Path) -> None:
    streamed = data(files, tmp_path)
    streamed.build(tiny.tokenizer())
    assert streamed.example_prompts(3) == []
    streamed = data(files, tmp_path, val_path=write(tmp_path / "val.jsonl", pairs(5000, 9)))
    streamed.build(tiny.tokenizer())
    assert len(streamed.example_prompts(3)) == 3


def test_a_cached_reference_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from lit_posttrain import DPO

    known = comparison_files(tmp_path)
    streamed = type(known)(known.paths, streaming=True)
    with pytest.raises(PostTrainError, match=r"--model\.reference cached is computed before training"):
        trainer(tmp_path, max_epochs=-1, max_steps=2).fit(
            DPO(ModelSpec(str(tiny_model)), reference="cached"), datamodule=streamed
        )


def test_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(name: str, config: str | None, split: str, streaming: bool = False) -> Any:
        asked.append((name, config, split, streaming))
        return datasets.Dataset.from_list(pairs(0, 6)).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("lit_posttrain.data.files.hf_datasets.missing_reason", lambda *_: None)
    (source,) = find_sources("owner/name:train", streaming=True)
    assert [record.data for record in source.records()] == pairs(0, 6)
    assert [record.line for record in source.records()] == [1, 2, 3, 4, 5, 6]
    assert asked == [("owner/name", None, "train", True)]
    streams = [hub(name) for name in ("owner/name:train", "owner/name:test", "owner/other")]
    assert len({made.identity["data"] for made in streams}) == 3, "a name is all that is known of it"
    assert hub("owner/name:train").identity == streams[0].identity


def hub(name: str) -> TreeStream:
    sources = find_sources(name, streaming=True)
    return TreeStream(sources, tiny.tokenizer(), OPTIONS, shuffle=True, buffer=20, seed=3)


def test_a_hub_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def broken() -> Any:
        yield from pairs(0, 2)
        raise ConnectionError("reset\nby peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: broken())
    monkeypatch.setattr("lit_posttrain.data.files.hf_datasets.missing_reason", lambda *_: None)
    (source,) = find_sources("owner/name", streaming=True)
    with pytest.raises(PostTrainError, match=r"not readable after row 2 \(ConnectionError: reset by peer\)"):
        list(source.records())


def test_a_buffer_mixes_neighbours_and_loses_nothing(files: list[str], tmp_path: Path) -> None:
    store, _ = build_store(files[:1], tiny.tokenizer(), OPTIONS, str(tmp_path / "cache"))
    order = [key(tree) for tree in islice(stream(files[:1], buffer=5), len(store))]
    assert sorted(order) == sorted(key(store[i]) for i in range(len(store)))
    rows = list(dict.fromkeys(int(source.rsplit(":", 1)[1]) for source, _ in order))
    places = {line: place for place, line in enumerate(sorted(rows))}
    early = [places[line] - at for at, line in enumerate(rows)]
    # the dropped rows pass through the buffer as well
    assert 0 < max(early) <= 5, "a row leaves a buffer of five at most five places early"
