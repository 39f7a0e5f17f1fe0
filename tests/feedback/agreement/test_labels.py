"""Joined votes are preference data with soft labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.annotators import Items

from lit_posttrain.data.feedback.record import Decision, item_id
from lit_posttrain.data.files.sources import read_records
from lit_posttrain.data.formats.comparisons import recognise_comparison
from lit_posttrain.feedback.agreement.dawid_skene import dawid_skene, reliability
from lit_posttrain.feedback.agreement.labels import joined, labels_of
from lit_posttrain.feedback.agreement.votes import votes_of


def said(annotator: str, *ranks: int, probability: float | None = None) -> Decision:
    responses = [{"text": text} for text in "abc"[: len(ranks)]]
    judge = None if probability is None else {"model": "m"}
    return Decision(
        annotator,
        item_id("Why?", responses),
        annotator,
        "Why?",
        responses,
        ranks=list(ranks),
        probability=probability,
        judge=judge,
    )


@pytest.mark.parametrize(
    ("votes", "majority", "mean"),
    [
        ([said("A", 0, 1), said("B", 0, 1), said("C", 1, 0)], 1.0, 2 / 3),
        ([said("A", 0, 1), said("B", 1, 0)], 0.5, 0.5),
        ([said("A", 0, 0), said("B", 1, 0), said("C", 0, 0)], 0.5, 1 / 3),
        ([said("A", 1, 0), said("J", 1, 0, probability=0.2)], 0.0, 0.1),
        ([said("A", 0, 0), said("B", 1, 0), said("C", 0, 1)], 0.5, 0.5),
    ],
)
def test_majority_and_mean(votes: list[Decision], majority: float, mean: float) -> None:
    found = votes_of(votes)
    assert joined(found, "majority").tolist() == [majority]
    assert joined(found, "mean").tolist() == pytest.approx([mean])


def test_dawid_skene_trusts_the_reliable() -> None:
    items = Items(300)
    right = (items.quality[:, 0] > items.quality[:, 1]).astype(float)
    people = [one for n, known in enumerate((0.97, 0.9, 0.5, 0.5, 0.5)) for one in items.people(str(n), known, n)]
    votes = votes_of(people)
    errors = {name: np.abs(joined(votes, name) - right).mean() for name in ("dawid_skene", "majority", "mean")}
    assert errors["dawid_skene"] < 0.5 * errors["majority"] < errors["mean"]
    told = reliability(votes, dawid_skene(votes.verdicts))
    assert told["0"]["right"] > 0.9
    assert told["3"]["right"] == pytest.approx(0.5, abs=0.1)
    assert told["0"]["right"] + told["0"]["tie"] + told["0"]["wrong"] == pytest.approx(1, abs=1e-5)


def test_labels_keep_the_other_columns() -> None:
    one = replace(said("A", 0, 1), columns={"tools": [{"name": "search"}]})
    votes = votes_of([said("B", 0, 1), one])
    (label,) = labels_of(votes, joined(votes, "mean"), "mean")
    assert label.columns == {"tools": [{"name": "search"}]}


def test_labels_are_preference_data(tmp_path: Path) -> None:
    votes = votes_of([said("A", 0, 1, 1), said("B", 0, 2, 1), said("C", 1, 0, 2)])
    made = list(labels_of(votes, joined(votes, "mean"), "mean"))
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(one.row()) + "\n" for one in made))
    records = list(read_records(str(file)))
    read = recognise_comparison(records[0]).read
    found = []
    for record in records:
        chosen, rejected = read(record.data).candidates
        texts = [one.messages[0]["content"] for one in (chosen, rejected)]
        found.append((*texts, round(rejected.labels.get("flip_prob", 0.0), 6)))
    assert found == [("a", "b", 0.333333), ("a", "c", 0.0), ("b", "c", 0.5)]
    assert len({one.id for one in made}) == 3
    assert made[0].judge == {"kind": "mean", "votes": {"A": 1.0, "B": 1.0, "C": 0.0}}
