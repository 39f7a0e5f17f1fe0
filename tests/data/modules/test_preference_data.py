"""From files of comparisons to trees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.comparisons import CHOSEN_A, USER, comparison, said, shown
from helpers.runs import write
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.audit import show
from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.data.modules.preference import PreferenceOptions
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.store.build import build_store
from lit_posttrain.data.store.loader import StepLoader
from lit_posttrain.errors import PostTrainError


def test_a_tree_is_a_prompt_with_its_responses(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "what is 3 plus 3", "responses": ["it is 6", "three", "no idea at all"], "ranks": [0, 1, 1]},
        {"prompt": "what is 3 plus 3", "responses": ["same", "same too"], "ranks": [0, 0]},
    ]
    path = write(tmp_path / "ranked.jsonl", rows)
    store, audit = build_store([path], tokenizer, PreferenceOptions(), str(tmp_path / "cache"))
    assert (len(store), audit.files[0].dropped["all tied"].lines) == (1, [2])
    tree = store[0]
    asked = [{"role": "user", "content": rows[0]["prompt"]}]
    template = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    assert tokenizer.decode(tree.prompt) == template
    assert [tokenizer.decode(r.tokens) for r in tree.responses] == [f"{t}<|im_end|>\n" for t in rows[0]["responses"]]
    assert all(r.loss_mask[:-1].all() and not r.loss_mask[-1] for r in tree.responses)  # the template's line end
    assert [r.labels for r in tree.responses] == [{"rank": 0}, {"rank": 1}, {"rank": 1}]
    assert store.units["pairs"].tolist() == [2]
    loader = StepLoader(store, batch_size=1)
    (batch,) = list(loader)
    assert (batch.denominators["pairs"], batch.local_count("pairs"), batch.denominators["responses"]) == (2, 2, 3)
    assert batch.ranks.tolist() == [0, 1, 1]


def test_a_response_is_never_cut(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a long prompt " * 5, "chosen": "an answer", "rejected": "b " * size} for size in (2, 60)]
    path = write(tmp_path / "long.jsonl", rows)
    whole, _ = build_store([path], tokenizer, PreferenceOptions(), str(tmp_path / "cache"))
    limit = len(whole[0].prompt)
    options = PreferenceOptions(max_length=limit, overlong="cut_prompt")
    cut, audit = build_store([path], tokenizer, options, str(tmp_path / "cache"))
    assert (len(cut), audit.total.cut) == (1, 1)
    assert audit.files[0].dropped["response alone fills max_length"].lines == [2]
    longest = max(len(r.tokens) for r in whole[0].responses)
    assert np.array_equal(cut[0].prompt, whole[0].prompt[-(limit - longest) :])
    for before, after in zip(whole[0].responses, cut[0].responses, strict=True):
        assert np.array_equal(before.tokens, after.tokens)
    dropped, audit = build_store([path], tokenizer, PreferenceOptions(max_length=limit), str(tmp_path / "cache"))
    assert (len(dropped), audit.total.dropped_count) == (0, 2)


def test_sides_that_answer_nothing_are_bad_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = {"role": "user", "content": " "}
    rows = [{"chosen": [turn, said("A")], "rejected": [turn, said("B")]} for turn in (USER, asked)]
    path, cache = write(tmp_path / "p.jsonl", rows), str(tmp_path / "cache")
    with pytest.raises(PostTrainError, match=r"p\.jsonl:2: .* nothing is asked"):
        build_store([path], tokenizer, PreferenceOptions(), cache)


def test_pairs_that_are_all_ties_are_refused_and_one_tie_is_shown_as_one(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Q{i}", "response1": "A", "response2": "B", "label": 0} for i in range(4)]
    file = tmp_path / "rows.jsonl"
    options = PreferenceOptions(label_values={"1": "first", "0": "tie"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PostTrainError, match=r"rows.jsonl \(.*label\): all 4 pairs are ties: .*--data.label_values"):
        build_store([str(file)], tokenizer, options, str(tmp_path / "cache"))
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "prompt": "Q", "label": 1}]))
    store, audit = build_store([str(file)], tokenizer, options, str(tmp_path / "cache"))
    assert audit.compared is not None
    assert (audit.compared.pairs, audit.compared.undecided) == (5, 4)
    assert (audit.compared.good, audit.compared.bad) == (1, 1)
    assert [show.shown(store[i], tokenizer).count("(tie)") for i in range(5)] == [2, 2, 2, 2, 0]
    assert "(chosen)" in show.shown(store[4], tokenizer)


def test_pairs_that_contradict_themselves() -> None:
    pair = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    with pytest.raises(BadRow, match=r"`margin` is -1.5: below 0 the rejected side is the better one"):
        comparison({**pair, "margin": -1.5})
    for chosen, rejected in (("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")):
        for scores, notes in (((1, 9), 1), ((9, 1), 0), ((1, 1), 0), ((None, 1), 0)):
            row = Row({**pair, chosen: scores[0], rejected: scores[1]})
            assert shown(recognise_comparison(Record(pair, "f", 1)).read(row)) == CHOSEN_A
            assert len(row.notes) == notes
