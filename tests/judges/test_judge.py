"""The record of a judge's opinion, and its id."""

from __future__ import annotations

from typing import Any

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.data.feedback.record import Decision, item_id
from lit_posttrain.judges.judge import Opinion, decision, decision_id

PROMPT = [{"role": "user", "content": "Why?"}]
ITEM = Item(PROMPT, [{"text": "So.", "model": "m"}, {"text": "Thus."}], {"topic": "x"}, "f.jsonl:3")


class Scripted:
    name = "scripted pairwise"

    def __init__(self, **identity: Any) -> None:
        self.identity = {"kind": "pairwise", **identity}

    async def opinion(self, item: Item) -> Opinion:
        raise AssertionError

    async def close(self) -> None:
        raise AssertionError


def test_the_record_of_a_verdict_can_be_read_again() -> None:
    said = Opinion("verdict", [0.8, 0.2], [0, 1], 0.8, reason="r", calls=2, details={"orders": [0.9, 0.7]})
    made = decision(ITEM, Scripted(version=1), said, seconds=0.5)
    assert made.item == item_id(PROMPT, ITEM.responses)
    assert made.judge == {"kind": "pairwise", "version": 1, "orders": [0.9, 0.7], "calls": 2, "scores": [0.8, 0.2]}
    assert (made.annotator, made.source, made.columns) == ("scripted pairwise", "f.jsonl:3", {"topic": "x"})
    assert made.responses == [{"text": "So.", "model": "m"}, {"text": "Thus."}]
    assert Decision.of(made.row()) == made


def test_what_is_no_verdict_has_no_scores_and_no_ranks() -> None:
    row = decision(ITEM, Scripted(), Opinion("failed", [None, None], error="refused", calls=1)).row()
    assert not {"ranks", "probability", "criteria"} & set(row)
    assert "scores" not in row["judge"]
    assert (row["outcome"], row["error"]) == ("failed", "refused")


def test_the_id_is_of_item_judge_and_repetition() -> None:
    one = decision_id(ITEM, Scripted(version=1))
    assert one == decision_id(Item(PROMPT, ITEM.responses, {}, "g.jsonl:9"), Scripted(version=1))
    other = Item(PROMPT, ITEM.responses[::-1])
    assert len({one, decision_id(other, Scripted(version=1)), decision_id(ITEM, Scripted(version=2))}) == 3
    assert decision_id(ITEM, Scripted(version=1), repetition=1) != one
