"""Every public format of preference data is read as it is published: the preferred response, ties, and the rows that
prefer nothing, by reason. The files were written by hand in the shape of each set, and what is expected of them too."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers.runs import write
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import PreferenceColumns
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.data.formats.published import JOINED, RATED
from lit_posttrain.data.modules.items import read_items
from lit_posttrain.data.modules.preference import PreferenceData
from lit_posttrain.data.rows.row import Row
from lit_posttrain.errors import PostTrainError
from lit_posttrain.types import Response

FOLDER = Path(__file__).parents[1] / "formats_public"
# of every file the rows that are kept, as "best > second = as good", and how many are dropped for which reason. Of a
# pair a tie is written as ~; single responses are + or -
EXPECTED: dict[str, tuple[list[str], dict[str, int]]] = {
    "trl_pairs": (["Monday. > Noon.", "May. > Tuesday."], {"equal responses": 1}),
    "trl_implicit_prompt": (["Arthur. > A rook."], {"no shared prompt": 1}),
    "trl_unpaired": (["+ Seven.", "- Nine."], {}),
    "trl_stepwise": (
        [
            "+ The fraction of 9.8 is 0.8, that of 9.11 is 0.11.\n0.8 is above 0.11.\nSo 9.8 is larger.",
            "- 2 + 2 = 4.\n4 doubled is 9.",
            "+ 1 + 1 = 2.",
        ],
        {},
    ),
    "ultrafeedback_binarized": (
        ["A hazelnut. > A bolt.", "A beet. > Cannot say.", "Called better. > Rated higher."],
        {"equal responses": 1},
    ),
    "tulu3": (["Titan. > Mars.", "Vega. > Venus.", "Deneb. > Europa."], {"equal responses": 1}),
    "reward_bench": (["Iron. > Wood.", "I will not help with that. > With a stick.", "3 > 4"], {}),
    "reward_bench_2": (
        [
            "The Rhine. > The Alps. = The moon. = No idea.",
            "Red. = Blue. = Green. > Loud. = Soft.",
            "Green. > Loud.",
        ],
        {"fewer than two rated responses": 1},
    ),
    "ultrafeedback": (
        [
            "Best of four. > In the middle. = As much in the middle. > Worst of four.",
            "Partly rated, good. > Rated, bad.",
        ],
        {"all tied": 1, "fewer than two rated responses": 2},
    ),
    "ultrafeedback_binarized_argilla": (["An oak. > A brick."], {"equal responses": 1, "empty response": 1}),
    "helpsteer3": (["A mug. > A chair.", "A wok. > A shoe.", "One jar. ~ Another jar.", "Left pot. > Right pot."], {}),
    "helpsteer2": (["A hammer. > A spoon.", "A hacksaw. > A seesaw."], {"all tied": 1, "one response": 1}),
    "helpsteer2_preference": (["A parka. > A sock.", "A beret. > A stone.", "A clog. ~ A boot."], {"no label": 1}),
    "nectar": (
        [
            "First road. > Second road. > Third road. > Fourth road.",
            "Best path. > Shared path. = Shared path too.",
        ],
        {"all tied": 1},
    ),
    "shp": (["Broth. > Bread.", "Goulash. > Toast.", "Dip. > [removed]"], {}),
    "lmarena": (["A tune. > A nail.", "A farce. > A plank.", "One book. ~ Two books.", "Bad one. ~ Bad too."], {}),
    "pku_safe_rlhf": (["A padlock. > Break it.", "With a pick, like this. > No."], {"equal responses": 1}),
    "pku_safe_rlhf_old": (["A stile. > A plank.", "A plank. > A stile."], {}),
    "nemo_rl": (["A canoe. > A brick.", "A brig. > A dig. > A fig."], {"all tied": 1}),
    "distilabel_ratings": (
        ["A pear. = A plum. > A nail.", "A sloe. > A stone."],
        {"fewer than two rated responses": 1, "all tied": 1},
    ),
    "distilabel_dpo": (["Granite. > Butter.", "Rated lower. > Rated higher."], {"equal responses": 1}),
    "constitutional": (["I will not help with that. > Take it at night."], {"equal responses": 1}),
}


def path_of(name: str) -> str:
    return str(FOLDER / f"{name}.jsonl")


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path_of(name)).read_text().splitlines()]


def built(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> PreferenceData:
    data = PreferenceData(path_of(name), cache_dir=str(tmp_path / "cache"), **options)
    data.build(tokenizer)
    return data


def said(response: Response, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(response.tokens, skip_special_tokens=True)).strip()


def shown(responses: list[Response], tokenizer: PreTrainedTokenizerFast) -> str:
    """A comparison in the words of `EXPECTED`."""
    if len(responses) == 1:
        return f"{'+' if responses[0].label('good') else '-'} {said(responses[0], tokenizer)}"
    ordered = sorted(responses, key=lambda response: response.label("rank"))
    text = said(ordered[0], tokenizer)
    for better, worse in pairwise(ordered):
        mark = "=" if better.label("rank") == worse.label("rank") else "~" if worse.label("flip_prob") == 0.5 else ">"
        text += f" {mark} {said(worse, tokenizer)}"
    return text


@pytest.mark.parametrize("name", EXPECTED)
def test_the_preferred_response_of_every_public_format(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = built(name, tmp_path, tokenizer)
    kept, dropped = EXPECTED[name]
    assert [shown(list(tree.responses), tokenizer) for tree in data.train_store] == kept
    assert {reason: tally.count for reason, tally in data.audit.total.dropped.items()} == dropped


def test_every_hand_made_file_is_expected() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(EXPECTED)


def test_prompts_of_several_turns(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for name, row, asked in (
        ("tulu3", 1, "Name a star."),
        ("tulu3", 2, "Name a star."),
        ("helpsteer2", 1, "Name a saw."),
        ("helpsteer2_preference", 1, "Name a hat."),
        ("nectar", 1, "Name a path."),
    ):
        prompt = tokenizer.decode(built(name, tmp_path, tokenizer).train_store[row].prompt)
        turns = [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hello, what is it?"},
            {"role": "user", "content": asked},
        ]
        assert prompt == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), name


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stream_reads_the_same(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = built(name, tmp_path, tokenizer, streaming=True, val_path=path_of(name))
    stream = data._stream
    assert stream is not None
    trees, kept = iter(stream()), EXPECTED[name][0]
    found = [shown(list(next(trees).responses), tokenizer) for _ in kept]
    assert Counter(found) == Counter(kept)


@pytest.mark.parametrize("name", EXPECTED)
def test_prompts_can_be_taken_from_every_public_format(name: str) -> None:
    if name == "trl_implicit_prompt":
        pytest.skip("its second row has no common prompt")
    rows = rows_of(name)
    reader = prompt_reader(Record(rows[0], "rows.jsonl", 1))
    asked = [reader.example(Row(row)).messages for row in rows if row.get("completions") != []]
    assert all(messages[-1]["role"] == "user" for messages in asked)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_public_format_can_be_judged_anew(name: str) -> None:
    if name.startswith(("trl_unpaired", "trl_stepwise")):
        with pytest.raises(PostTrainError, match=r"jsonl"):
            read_items(path_of(name))
        return
    items = {
        item.source.rpartition(":")[2]: [one["text"] for one in item.responses] for item in read_items(path_of(name))
    }
    compared = [
        kept.replace(" > ", "|").replace(" = ", "|").replace(" ~ ", "|").split("|") for kept in EXPECTED[name][0]
    ]
    assert {tuple(sorted(texts)) for texts in compared} <= {
        tuple(sorted(texts)) for texts in items.values()
    } or name in (
        "ultrafeedback",
        "distilabel_ratings",  # whose unrated responses can be judged, too
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_the_config_for_sft_says_what_they_are(name: str) -> None:
    row = rows_of(name)[0]
    if name == "helpsteer2":  # a prompt with its answer
        assert recognise(Record(row, "rows.jsonl", 1)).name == "prompt/response"
        return
    if "messages" in row:
        assert recognise(Record(row, "rows.jsonl", 1)).name == "messages"
        return
    with pytest.raises(PostTrainError, match=r"^rows\.jsonl:1: not conversations but .*configs/"):
        recognise(Record(row, "rows.jsonl", 1))


def test_responses_nobody_rated_are_left_out_and_told_of(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for name in ("ultrafeedback", "distilabel_ratings"):
        (file,) = built(name, tmp_path, tokenizer).audit.files
        assert file.notes["with responses that were not rated, which are left out"].lines == [2]


def test_rows_that_were_joined_are_told_of(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (file,) = built("helpsteer2", tmp_path, tokenizer).audit.files
    assert (file.rows, file.notes[JOINED].lines) == (4, [1, 6])


def test_two_bad_responses_are_bad_and_no_pair(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = built("lmarena", tmp_path, tokenizer)
    batch_labels = [[r.label("good") for r in tree.responses] for tree in data.train_store]
    assert batch_labels[3] == [0.0, 0.0]
    assert data.audit.compared is not None
    assert (data.audit.compared.good, data.audit.compared.bad) == (2, 4)


def test_what_is_safe_is_kept(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for name, safe in (("pku_safe_rlhf", [[1.0, 0.0], [0.0, 1.0]]), ("pku_safe_rlhf_old", [[1.0, 1.0], [1.0, 0.0]])):
        data = built(name, tmp_path, tokenizer)
        assert [[r.label("safe") for r in tree.responses] for tree in data.train_store] == safe


def test_helpsteer2_by_another_rating(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {
            "prompt": "Name a tool.",
            "response": text,
            **dict.fromkeys(RATED, 3),
            "helpfulness": good,
            "correctness": right,
        }
        for text, good, right in (("A drill.", 1, 4), ("A thrill.", 4, 1), ("A saw.", 2, 2))
    ]
    path = write(tmp_path / "rated.jsonl", rows)
    for named, best in (
        (None, "A thrill."),
        (PreferenceColumns(responses="response", scores="correctness"), "A drill."),
    ):
        data = PreferenceData(path, cache_dir=str(tmp_path / "cache"), columns=named)
        data.build(tokenizer)
        (tree,) = data.train_store
        assert shown(list(tree.responses), tokenizer).startswith(f"{best} > A saw. > ")
        assert tree.source.endswith("rated.jsonl:1")


def test_rows_of_ratings_may_be_single_responses(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "Q", "response": "A", **dict.fromkeys(RATED, 3), "liked": liked} for liked in (True, False)]
    columns = PreferenceColumns(completion="response", good="liked")
    data = PreferenceData(write(tmp_path / "liked.jsonl", rows), cache_dir=str(tmp_path / "cache"), columns=columns)
    data.build(tokenizer)
    assert [tree.responses[0].label("good") for tree in data.train_store] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "margin", "expected", "dropped"),
    [
        (
            "ultrafeedback_binarized",
            ["score_chosen", "score_rejected"],
            {"A hazelnut.": 4.5, "A beet.": 0.0},
            {"equal responses": 1, "scores the other way round": 1},
        ),
        (
            "tulu3",  # null for rows of several turns
            ["chosen_rating", "rejected_rating"],
            {"Titan.": 3.0, "Vega.": None, "Deneb.": None},
            {"equal responses": 1},
        ),
        ("helpsteer3", "overall_preference", {"A mug.": 3.0, "A wok.": 2.0, "One jar.": 0.0, "Left pot.": 1.0}, {}),
    ],
)
def test_margins_of_published_scores(
    name: str,
    margin: str | list[str],
    expected: dict[str, float | None],
    dropped: dict[str, int],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    data = built(name, tmp_path, tokenizer, columns=PreferenceColumns(margin=margin))
    best = [min(tree.responses, key=lambda response: response.label("rank")) for tree in data.train_store]
    assert {said(one, tokenizer): one.labels.get("margin") for one in best} == expected
    assert {reason: tally.count for reason, tally in data.audit.total.dropped.items()} == dropped


@pytest.mark.parametrize(
    ("name", "margin"),
    [("ultrafeedback_binarized", ["score_chosen"]), ("helpsteer3", ["domain", "overall_preference"])],
)
def test_a_list_of_margins_is_of_two_sides(
    name: str, margin: list[str], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(PostTrainError, match=r"--data\.columns\.margin .*the two with their scores"):
        built(name, tmp_path, tokenizer, columns=PreferenceColumns(margin=margin))


@pytest.mark.parametrize("name", EXPECTED)
def test_parquet_files_as_on_the_hub_are_read_alike(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / f"{name}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of(name)), path)
    data = PreferenceData(str(path), cache_dir=str(tmp_path / "cache"))
    data.build(tokenizer)
    assert [shown(list(tree.responses), tokenizer) for tree in data.train_store] == EXPECTED[name][0]
