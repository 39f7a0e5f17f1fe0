"""Which principles a question shows: all of them, or each of those that were drawn for its prompt in a question of its
own, whose answers are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.judges.constitution import Constitution, Principle
from lit_posttrain.judges.spec import JudgeSpec

View = Sequence[Principle]


def views_of(item: Item, constitution: Constitution, spec: JudgeSpec) -> list[View]:
    """The principles of each question on an item. They are drawn for the prompt, not the item: all responses to a
    prompt are judged by the same ones, in whatever items they stand."""
    if not spec.principles:
        return [constitution.principles]
    prompt = [dict(message) for message in item.prompt]
    return [[one] for one in constitution.drawn(spec.principles, spec.seed, prompt)]


def drawn_names(views: Sequence[View], spec: JudgeSpec) -> dict[str, Any]:
    """The names of drawn principles, for the record; {} if all are shown."""
    return {"principles": [one.name for view in views for one in view]} if spec.principles else {}
