"""Files to a cached store: overlong rows, bad rows, the cache, and the hash that decides what is held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.audit.report import AuditReport
from lit_posttrain.data.render.masks import TokenMask
from lit_posttrain.data.render.overlong import NOTHING_LEFT, PROMPT_TOO_LONG, TOO_LONG, fit
from lit_posttrain.data.render.trees import row_hash
from lit_posttrain.data.store import build as tokenize
from lit_posttrain.data.store.build import TokenizeOptions, build_store, held_out
from lit_posttrain.data.store.store import TreeStore
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Response, Tree

OPTIONS = TokenizeOptions(max_length=64)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def tokens(store: TreeStore) -> list[list[int]]:
    return [
        [*tree.prompt.tolist(), *(i for r in tree.responses for i in r.tokens.tolist())] for tree in iter_trees(store)
    ]


def iter_trees(store: TreeStore) -> Iterator[Any]:
    return (store[i] for i in range(len(store)))


def test_several_files_in_order(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    one = write(tmp_path / "one.jsonl", [talk("a", "b"), talk("c", "d")])
    two = write(tmp_path / "two.jsonl", [{"question": "e", "answer": "f"}])
    store, audit = build_store([one, two], tokenizer, OPTIONS, str(cache))
    assert [t.source for t in iter_trees(store)] == [f"{one}:1", f"{one}:2", f"{two}:1"]
    assert [f.format for f in audit.files] == ["messages", "question/answer"]
    assert (audit.total.rows, audit.total.examples, audit.total.tokens) == (3, 3, int(store.lengths.sum()))
    assert audit.total.trained_tokens == int(store.units["tokens"].sum()) == 6
    assert tokenizer.decode(tokens(store)[2]) == "<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\nf<|im_end|>"


def test_chunks_change_nothing(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", [talk(f"question {i}", f"answer {i}") for i in range(50)])
    whole, _ = build_store([path], tokenizer, OPTIONS, str(cache / "whole"))
    monkeypatch.setattr(tokenize, "_CHUNK_ROWS", 3)
    pieces, _ = build_store([path], tokenizer, OPTIONS, str(cache / "pieces"))
    assert tokens(pieces) == tokens(whole)
    assert pieces.lines.tolist() == whole.lines.tolist() == list(range(1, 51))
    assert pieces.fingerprint == whole.fingerprint


# ---------------------------------------------------------------- overlong rows


def _overlong(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> tuple[TreeStore, Any]:
    path = write(
        tmp_path / "a.jsonl", [talk("a", "fox " * 30), talk("a", "b"), talk("fox " * 60, "fox"), talk("c", "d")]
    )
    return build_store([path], tokenizer, replace(OPTIONS, max_length=24, **changes), str(cache))


def test_overlong_rows_are_dropped_and_counted(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    store, audit = _overlong(tmp_path, cache, tokenizer, overlong="drop")
    dropped = {reason: (tally.count, tally.lines) for reason, tally in audit.total.dropped.items()}
    assert store.lines.tolist() == [2, 4]
    assert dropped == {TOO_LONG: (1, []), PROMPT_TOO_LONG: (1, [])}
    assert audit.files[0].dropped[TOO_LONG].lines == [1]
    assert audit.files[0].dropped[PROMPT_TOO_LONG].lines == [3]
    assert (audit.total.rows, audit.total.examples, audit.total.dropped_count) == (4, 2, 2)


def test_overlong_rows_are_cut_at_the_end(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    full, _ = _overlong(tmp_path, cache / "full", tokenizer, overlong="split")
    store, audit = _overlong(tmp_path, cache, tokenizer, overlong="cut")
    assert store.lines.tolist() == [1, 2, 4]
    assert store.lengths.max() == 24
    assert tokens(store)[0] == tokens(full)[0]
    assert (audit.total.cut, audit.total.dropped_count) == (1, 1)
    assert audit.files[0].dropped[PROMPT_TOO_LONG].lines == [3]


def test_a_cut_that_leaves_nothing_to_train_on_is_a_drop() -> None:
    late = Tree(np.arange(3, dtype=np.int32), [Response(np.arange(9, dtype=np.int32), np.arange(9) > 6)])
    fitted = fit(late, 6, "cut")
    assert (fitted.trees, fitted.dropped, fitted.cut) == ([], NOTHING_LEFT, 0)
    # tokens 10 and 11 of 12 are trained on; a piece that starts with one of them cannot train it
    assert [len(t.responses[0].tokens) for t in fit(late, 10, "split").trees] == [1]
    assert fit(late, 12, "cut").trees == [late]
    one = Tree(late.prompt, [Response(late.responses[0].tokens, np.arange(9) == 7)])
    assert fit(one, 10, "split").dropped == NOTHING_LEFT


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_overlong_rows_are_split(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, train_on: Any
) -> None:
    whole, _ = build_store(
        [write(tmp_path / "b.jsonl", [talk("a", "fox " * 30)])],
        tokenizer,
        replace(OPTIONS, max_length=512, train_on=train_on),
        str(cache),
    )
    store, audit = _overlong(tmp_path, cache, tokenizer, overlong="split", train_on=train_on)
    first = [i for i, line in enumerate(store.lines) if line == 1]
    pieces = [tokens(store)[i] for i in first]
    assert list(chain.from_iterable(pieces)) == tokens(whole)[0]
    assert [len(p) for p in pieces[:-1]] == [24] * (len(pieces) - 1)
    # every later piece starts with a token that nothing predicts
    assert sum(store.units["tokens"][first]) == whole.units["tokens"][0] - (len(pieces) - 1)
    assert audit.total.split == 2
    assert audit.total.dropped_count == 0
    assert all(len(r.tokens) for t in iter_trees(store) for r in t.responses)
    if train_on == "assistant":
        assert audit.total.empty_pieces > 0
        assert store[first[1]].prompt_loss_mask is None


def test_training_on_everything_cuts_inside_a_long_prompt(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    store, audit = _overlong(tmp_path, cache, tokenizer, overlong="cut", train_on="all")
    assert store.lengths.tolist()[2] == 24
    assert store.units["tokens"].tolist()[2] == 23
    assert (audit.total.cut, audit.total.dropped_count) == (2, 0)
    assert NOTHING_LEFT not in audit.total.dropped


# ---------------------------------------------------------------- bad rows

BAD = [talk("a", "b"), talk("a", ""), {"messages": 3}, {"text": "a"}, talk("a", "\ud83d"), talk("e", "f")]


def test_a_bad_row_is_an_error_with_its_place(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "a.jsonl", BAD)
    with pytest.raises(
        PostTrainError, match=r"a\.jsonl:2: messages\[1\]: the assistant's turn is empty.*on_bad_row skip\)$"
    ):
        build_store([path], tokenizer, OPTIONS, str(cache))
    assert list(cache.iterdir()) == []


def test_bad_rows_are_skipped_and_counted(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "a.jsonl", BAD)
    store, audit = build_store([path], tokenizer, replace(OPTIONS, on_bad_row="skip"), str(cache))
    assert store.lines.tolist() == [1, 6]
    dropped = {reason: tally.lines for reason, tally in audit.files[0].dropped.items()}
    assert dropped == {"empty completion": [2], "wrong type": [3], "missing column": [4], "not Unicode": [5]}
    assert audit.total.rows == audit.total.examples + audit.total.dropped_count == 6


def test_a_token_boundary_is_a_bad_row(tmp_path: Path, cache: Path) -> None:
    base = tiny.tokenizer(None)
    path = write(
        tmp_path / "a.jsonl", [{"prompt": "the", "completion": " fox"}, {"prompt": "the qu", "completion": "ick"}]
    )
    with pytest.raises(PostTrainError, match=r"a\.jsonl:2: the prompt alone ends in the tokens"):
        build_store([path], base, OPTIONS, str(cache))
    _, audit = build_store([path], base, replace(OPTIONS, on_bad_row="skip"), str(cache))
    assert audit.files[0].dropped["token boundary"].lines == [2]


def test_a_template_error_is_never_skipped(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.jsonl", [talk("a", "b")])
    made = tiny.tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(PostTrainError, match=r"a\.jsonl:1: the chat template .* turns cannot be told apart"):
        build_store([path], made, replace(OPTIONS, on_bad_row="skip"), str(cache))


# ---------------------------------------------------------------- the cache


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that were really tokenised."""
    sizes: list[int] = []
    encode = TokenMask.encode

    def watched(self: TokenMask, texts: Any, plain: bool) -> list[Any]:
        sizes.append(len(texts))
        return encode(self, texts, plain)

    monkeypatch.setattr(TokenMask, "encode", watched)
    return sizes


def test_the_cache_goes_by_content(tmp_path: Path, cache: Path, encoded: list[int]) -> None:
    rows = [talk("a", "b"), talk("c", "d")]
    path, made = write(tmp_path / "a.jsonl", rows), tiny.tokenizer()
    store, audit = build_store([path], made, OPTIONS, str(cache))
    made(["padded"], padding="max_length", truncation=True, max_length=9)
    again, same = build_store([path], made, OPTIONS, str(cache))
    assert encoded == [2]
    assert (again.fingerprint, same) == (store.fingerprint, audit)

    moved = write(tmp_path / "moved.jsonl", rows)
    store, audit = build_store([moved], made, OPTIONS, str(cache))
    assert encoded == [2]
    assert (store[0].file, audit.files[0].name) == (moved, moved)

    write(tmp_path / "a.jsonl", [talk("a", "b"), talk("c", "e")])
    build_store([path], made, OPTIONS, str(cache))
    assert encoded == [2, 2]


@pytest.mark.parametrize(
    "changed",
    [{"train_on": "last"}, {"system_prompt": "x"}, {"max_length": 63}, {"overlong": "cut"}, {"on_bad_row": "skip"}],
)
def test_every_option_is_part_of_the_key(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, encoded: list[int], changed: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.jsonl", [talk("a", "b")])
    build_store([path], tokenizer, OPTIONS, str(cache))
    build_store([path], tokenizer, replace(OPTIONS, **changed), str(cache))
    assert encoded == [1, 1]


def test_tokenizer_and_template_are_part_of_the_key(tmp_path: Path, cache: Path, encoded: list[int]) -> None:
    path, made = write(tmp_path / "a.jsonl", [talk("a", "b")]), tiny.tokenizer()
    build_store([path], made, OPTIONS, str(cache))
    made.chat_template = "{# changed #}" + tiny.CHATML
    build_store([path], made, OPTIONS, str(cache))
    made.add_tokens(["fox"])
    build_store([path], made, OPTIONS, str(cache))
    made.eos_token = "<|pad|>"
    build_store([path], made, OPTIONS, str(cache))
    assert encoded == [1] * 4


def test_a_failure_midway_leaves_no_folder(
    tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "_CHUNK_ROWS", 2)
    rows = [talk("a", "b") for _ in range(20)]
    path = write(tmp_path / "a.jsonl", [*rows, {"messages": None}])
    with pytest.raises(PostTrainError, match=r"a\.jsonl:21"):
        build_store([path], tokenizer, OPTIONS, str(cache))
    assert list(cache.iterdir()) == []
    write(tmp_path / "a.jsonl", rows)
    store, _ = build_store([path], tokenizer, OPTIONS, str(cache))
    assert [len(store), len(list(cache.iterdir()))] == [20, 1]


def test_the_cache_folder_comes_from_the_environment(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_POSTTRAIN_CACHE", str(tmp_path / "named"))
    store, audit = build_store([write(tmp_path / "a.jsonl", [talk("a", "b")])], tokenizer, OPTIONS)
    assert store.folder.parent == tmp_path / "named"
    assert AuditReport.from_json(audit.to_json()) == audit


# ---------------------------------------------------------------- holding out


def test_the_held_out_share_goes_by_content(tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [talk(f"question {i}", "b") for i in range(400)]
    one, _ = build_store([write(tmp_path / "a.jsonl", rows)], tokenizer, OPTIONS, str(cache))
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(400)]
    files = [write(tmp_path / "b.jsonl", shuffled[:100]), write(tmp_path / "c.jsonl", shuffled[100:] + rows[:50])]
    two, _ = build_store(files, tokenizer, OPTIONS, str(cache))

    def aside(store: TreeStore) -> set[tuple[int, ...]]:
        return {tuple(ids) for ids, held in zip(tokens(store), held_out(store, 0.25), strict=True) if held}

    def kept(store: TreeStore) -> set[tuple[int, ...]]:
        return {tuple(ids) for ids, held in zip(tokens(store), held_out(store, 0.25), strict=True) if not held}

    assert aside(one) == aside(two)
    assert not aside(two) & kept(two)
    assert 70 < len(aside(one)) < 130
    assert not held_out(one, 0.0).any()
    assert held_out(one, 1.0).all()
    # a larger share keeps what a smaller one held out
    assert not (held_out(one, 0.1) & ~held_out(one, 0.25)).any()


def test_the_row_hash_is_the_same_in_every_run() -> None:
    assert row_hash({"a": 1, "b": "é"}) == row_hash({"b": "é", "a": 1}) == 14138109183190257097
    assert row_hash({"a": 1, "b": "e"}) != row_hash({"a": 1, "b": "é"})
