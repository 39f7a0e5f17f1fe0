"""Which response a label prefers: files whose labels mean something else than 1, 2 and 0 for a tie are never trained on
the wrong way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.files.source import Record
from lit_posttrain.data.formats.comparisons import PreferenceColumns, recognise_comparison
from lit_posttrain.data.formats.conversations import recognise
from lit_posttrain.data.formats.prompts import prompt_reader
from lit_posttrain.data.modules.preference import PreferenceData
from lit_posttrain.data.rows.bad_rows import Misread
from lit_posttrain.data.rows.kinds import JUDGED
from lit_posttrain.data.rows.row import Row
from lit_posttrain.data.rows.votes import Votes
from lit_posttrain.errors import PostTrainError


def build(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **options: Any
) -> PreferenceData:
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PreferenceData(str(path), cache_dir=str(tmp_path / "cache"), **options)
    data.build(tokenizer)
    return data


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Q{i}", "response1": "A", "response2": "B", "label": x} for i, x in enumerate(labels)]


def preferred(data: PreferenceData, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The better response of every row, `=` for ties."""
    found = []
    for tree in data.train_store:
        best, other = sorted(tree.responses, key=lambda r: r.label("rank"))
        assert (best.label("rank"), other.label("rank")) == (0, 1)
        found.append("=" if other.label("flip_prob") == 0.5 else tokenizer.decode(best.tokens)[0])
    return found


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("kind", [int, float, str])
@pytest.mark.parametrize("labels", [(0, 1, 0), (0, 0), (1, 1, 0), (-3, 1, 2), (1, 2, 3), (1, -1)])
def test_labels_of_another_kind_end_the_run_whatever_is_skipped(
    labels: tuple[int, ...], kind: Any, on_bad_row: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(PostTrainError, match=r"--data\.label_values") as caught:
        build(tmp_path, tokenizer, labelled(*map(kind, labels)), on_bad_row=on_bad_row)
    assert "on_bad_row" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "values", "expected"),
    [
        ((1, 2, 0), None, "AB="),
        ((1, 2), None, "AB"),
        ((1, 1), None, "AA"),
        ((0, 1), {"0": "first", "1": "second"}, "AB"),
        ((0, 1), {"1": "first", "0": "second"}, "BA"),
        (("0", 1.0), {1: "first", 0: "tie"}, "=A"),
        ((-1, 1, 0), {"-1": "first", "1": "second", "0": "tie"}, "AB="),
        (("model_b", "Model_A", "tie"), {"model_a": "first", "model_b": "second", "tie": "tie"}, "BA="),
        ((True, False), {"true": "first", "false": "second"}, "AB"),
    ],
)
def test_what_labels_mean_can_be_said(
    labels: tuple[Any, ...], values: Any, expected: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    data = build(tmp_path, tokenizer, labelled(*labels), label_values=values)
    assert "".join(preferred(data, tokenizer)) == expected


def test_a_missing_label_is_a_bad_row(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = labelled(1, None, "", 2)
    with pytest.raises(PostTrainError, match=r"judged\.jsonl:2: `label` is empty"):
        build(tmp_path, tokenizer, rows)
    assert preferred(build(tmp_path, tokenizer, rows, on_bad_row="skip"), tokenizer) == ["A", "B"]


HELPSTEER = [(-3, "A"), (-1, "A"), (0, "="), (1, "B"), (2, "B")]


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        (("prompt", "response_0", "response_1", "better_response_id"), [(0, "A"), (1, "B"), (0, "A")]),
        (("history", "human_ref_A", "human_ref_B", "labels"), [(1, "A"), (0, "B")]),
        (("prompt", "response_1", "response_2", "preference_strength"), HELPSTEER),
        (("context", "response1", "response2", "overall_preference"), HELPSTEER),
    ],
)
def test_published_sets_are_read_the_right_way_round(
    columns: tuple[str, ...], labels: list[tuple[int, str]], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked: Any = [{"role": "user", "content": "Q"}] if columns[0] == "context" else "Q"
    rows = [
        {**dict(zip(columns, (asked, "A", "B", label), strict=True)), "n": i} for i, (label, _) in enumerate(labels)
    ]
    data = build(tmp_path, tokenizer, rows)
    assert preferred(data, tokenizer) == [better for _, better in labels]
    assert list(data.audit.files[0].unread) == ["n"]
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(data.train_store[0].prompt) == template


def test_judged_conversations_have_their_prompt_in_common(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def side(text: str) -> list[dict[str, Any]]:
        parts = [[{"type": "text", "text": said}] for said in ("Q", text)]
        return [{"role": role, "content": part} for role, part in zip(("user", "assistant"), parts, strict=True)]

    winners = ["model_a", "model_b", "tie", "both_bad", "tie (bothbad)"]
    talks = {"conversation_a": side("A"), "conversation_b": side("B")}
    rows: list[dict[str, Any]] = [{"winner": w, **talks, "language": "en"} for w in winners]
    data = build(tmp_path, tokenizer, rows)  # LMArena
    assert preferred(data, tokenizer) == ["A", "B", "=", "=", "="]
    record = Record(rows[0], "judged.jsonl", 1)
    assert prompt_reader(record).example(Row(rows[0])).messages == [{"role": "user", "content": "Q"}]
    with pytest.raises(PostTrainError, match="two responses to a prompt and which is better"):
        recognise(record)
    rows = [{"left": row["conversation_a"], "right": row["conversation_b"], "label": 1} for row in rows]
    columns = PreferenceColumns(first="left", second="right")
    assert preferred(build(tmp_path, tokenizer, rows, columns=columns), tokenizer) == ["A"] * 5
    with pytest.raises(PostTrainError, match=r"preferences need prompt: --data\.columns\.prompt NAME"):
        recognise_comparison(Record({"response1": "A", "response2": "B", "label": 1}, "judged.jsonl", 1))


def test_another_label_of_a_published_set_is_not_guessed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "Q", "response_0": "A", "response_1": "B", "safer_response_id": i} for i in (0, 1)]
    columns = PreferenceColumns(labels=["safer_response_id"])
    with pytest.raises(PostTrainError, match=r"count from 0.*what safer_response_id means.*label_values"):
        build(tmp_path, tokenizer, rows, columns=columns, on_bad_row="skip")
    said = {"0": "first", "1": "second"}
    assert preferred(build(tmp_path, tokenizer, rows, columns=columns, label_values=said), tokenizer) == ["A", "B"]


@pytest.mark.parametrize("labels", [{"label": 1}, {"annotator1": 1, "annotator_2": 1}])
@pytest.mark.parametrize(("prompt", "first", "second", "label", "values"), JUDGED)
def test_a_published_column_beside_other_labels_is_asked_for(
    prompt: str | None, first: str, second: str, label: str, values: dict[str, Any], labels: dict[str, Any]
) -> None:
    turns = [{"role": "user", "content": "Q"}]
    sides = ["A", "B"] if prompt else [[*turns, {"role": "assistant", "content": text}] for text in "AB"]
    row = {**dict(zip((first, second), sides, strict=True)), label: [*values][-1], **labels}
    row |= {prompt: turns if prompt == "context" else "Q"} if prompt else {}
    record = Record(row, "judged.jsonl", 3)
    with pytest.raises(
        PostTrainError, match=rf"judged\.jsonl:3: {', '.join(labels)} and {label} may all say"
    ) as caught:
        recognise_comparison(record)
    said = str(caught.value)
    assert "\n" not in said
    assert f"--data.columns.labels '[{', '.join(labels)}]' or '[{label}]'" in said
    named = recognise_comparison(record, PreferenceColumns(labels=[label]))
    assert named.read(row).prompt == turns
    meaning: Any = {"1": "first", "2": "second"}
    named = recognise_comparison(record, PreferenceColumns(labels=[*labels]), values=meaning)
    assert named.read(row).candidates[0].messages[-1]["content"] == "A"
    assert prompt_reader(record).example(Row(row)).messages == turns  # which needs no labels


@pytest.mark.parametrize("strengths", [(1, 2, 3), (3,), (0, 1), ("2", "3")])
@pytest.mark.parametrize(
    "columns",
    [
        ("prompt", "response_1", "response_2", "preference_strength"),
        ("context", "response1", "response2", "overall_preference"),
    ],
)
def test_strengths_without_a_sign_prefer_nobody(
    columns: tuple[str, ...], strengths: tuple[Any, ...], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked: Any = [{"role": "user", "content": "Q"}] if columns[0] == "context" else "Q"
    rows = [dict(zip(columns, (asked, "A", "B", label), strict=True)) for label in strengths]
    with pytest.raises(PostTrainError, match=f"`{columns[3]}`: no label is below 0.*--data.columns.labels"):
        build(tmp_path, tokenizer, rows, on_bad_row="skip")
    said: dict[str, Any] = {"0": "tie", "1": "second", "2": "second", "3": "second"}
    assert set(preferred(build(tmp_path, tokenizer, rows, label_values=said), tokenizer)) <= {"B", "="}


def test_the_remedy_for_a_small_file_fits_the_others_of_its_set(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    columns = ("prompt", "response_1", "response_2", "preference_strength")
    few, all_of_it = (
        [dict(zip(columns, ("Q", "A", "B", label), strict=True)) for label in labels]
        for labels in ((1, 2), (-3, -2, -1, 0, 1, 2, 3))
    )
    with pytest.raises(PostTrainError, match=r"--data\.label_values") as refused:
        build(tmp_path, tokenizer, few)
    said = yaml.safe_load(str(refused.value).split("--data.label_values '")[1].split("'")[0])
    assert preferred(build(tmp_path, tokenizer, few, label_values=said), tokenizer) == ["B", "B"]
    found = preferred(build(tmp_path, tokenizer, all_of_it, label_values=said), tokenizer)
    assert found == preferred(build(tmp_path, tokenizer, all_of_it), tokenizer) == [*"AAA=BBB"]


@pytest.mark.parametrize("label", [0, 1, 2, "1"])
@pytest.mark.parametrize(("first", "second"), [("response_0", "response_1"), ("answer0", "answer1"), ("b1", "b0")])
def test_labels_of_responses_that_count_from_0_are_asked_for(first: str, second: str, label: Any) -> None:
    row = {"prompt": "Q", first: "A", second: "B", "label": label}
    record = Record(row, "judged.jsonl", 1)
    columns = PreferenceColumns(first=first, second=second)
    with pytest.raises(PostTrainError, match=r"judged\.jsonl:1: .* count from 0.*--data\.label_values"):
        recognise_comparison(record, columns)
    if first == "response_0":
        with pytest.raises(PostTrainError, match="count from 0"):
            recognise_comparison(record)
    found = recognise_comparison(record, columns, values={"0": "first", "1": "second", "2": "tie"}).read(row)
    assert found.candidates[0].messages[0]["content"] == ("B" if label in (1, "1") else "A")


@pytest.mark.parametrize(
    ("columns", "label", "better"),
    [
        (("history", "human_ref_A", "human_ref_B", "labels"), True, "A"),
        (("history", "human_ref_A", "human_ref_B", "labels"), "False", "B"),
        (("prompt", "response_0", "response_1", "better_response_id"), False, "A"),
        (("prompt", "response_0", "response_1", "better_response_id"), 2, None),
        (("prompt", "response_1", "response_2", "preference_strength"), -4, None),
        (("prompt", "response_1", "response_2", "preference_strength"), True, None),
    ],
)
def test_other_values_of_published_labels(
    columns: tuple[str, ...],
    label: Any,
    better: str | None,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [dict(zip(columns, ("Q", "A", "B", label), strict=True))]
    if better:
        assert preferred(build(tmp_path, tokenizer, rows), tokenizer) == [better]
        return
    with pytest.raises(PostTrainError, match=f"`{columns[3]}` is {label}; known labels of this column are .*: --data"):
        build(tmp_path, tokenizer, rows, on_bad_row="skip")


def ranked(**columns: Any) -> list[tuple[str, float]]:
    row = {"prompt": "Q", "responses": ["A", "B", "C"], **columns}
    named = PreferenceColumns(scores="places") if "places" in columns else None
    made = recognise_comparison(Record(row, "ranked.jsonl", 1), named).read(row)
    return [(candidate.messages[0]["content"], candidate.labels["rank"]) for candidate in made.candidates]


@pytest.mark.parametrize("column", ["ratings", "scores", "places"])
def test_scores_are_best_where_they_are_highest(column: str) -> None:
    assert ranked(**{column: [1, 2, 3]}) == [("A", 2.0), ("B", 1.0), ("C", 0.0)]
    assert ranked(**{column: ["4.5", 0.25, 4.5]}) == [("A", 0.0), ("B", 1.0), ("C", 0.0)]
    assert ranked(**{column: [1, 2, 3]}, ranks=[1, 2, 3]) == (
        [("A", 2.0), ("B", 1.0), ("C", 0.0)] if column == "places" else [("A", 0.0), ("B", 1.0), ("C", 2.0)]
    )


def test_scores_are_not_taken_for_ranks() -> None:
    row = {"prompt": "Q", "generations": ["A", "B"], "ratings": [1, 2]}
    with pytest.raises(PostTrainError, match=r"pass --data\.columns\.scores ratings"):
        recognise_comparison(Record(row, "ranked.jsonl", 1), PreferenceColumns(ranks="ratings"))
    for given in ([3, 5], [0.5, 1.0], [-1, 0], [4, 4, 5]):
        row = {"prompt": "Q", "responses": ["A", "B", "C"][: len(given)], "ranks": given}
        with pytest.raises(Misread, match=r"--data\.columns.scores"):
            recognise_comparison(Record(row, "ranked.jsonl", 1)).read(row)


@pytest.mark.parametrize(
    ("row", "best"),
    [
        ({"instruction": "Q", "generations": ["A", "B"], "ratings": [2, 5]}, "B"),  # distilabel
        ({"prompt": "Q", "answers": [{"answer": "A", "rank": 2.0}, {"answer": "B", "rank": 1.0}]}, "B"),  # Nectar
        (
            {"instruction": "Q", "chosen_response": "A", "rejected_response": "B", "chosen_avg_rating": 4.0},
            "A",
        ),  # Argilla
        (
            {
                "context": [{"role": "user", "content": "Q"}],
                "completions": [
                    {"rank": rank, "completion": [{"role": "assistant", "content": text}]}
                    for rank, text in ((1, "A"), (0, "B"))
                ],
            },
            "B",  # NeMo-RL
        ),
    ],
)
def test_published_columns_of_rankings_and_pairs(row: dict[str, Any], best: str) -> None:
    made = recognise_comparison(Record(row, "ranked.jsonl", 1)).read(row)
    assert made.prompt == [{"role": "user", "content": "Q"}]
    (found,) = [c for c in made.candidates if c.labels["rank"] == 0]
    assert found.messages[-1]["content"] == best


def test_votes_are_spelled_in_any_way() -> None:
    votes = Votes(["a", "b"], {"Left": "first", "1": "second"})
    assert votes.share_for_first([" LEFT", "1.0"]) == 0.5
    assert votes.share_for_first([1, 1.0]) == 0.0
