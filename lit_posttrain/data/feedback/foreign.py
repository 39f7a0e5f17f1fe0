"""What the exports of annotation tools have in common: which field is the prompt, and what a decision says as ranks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_posttrain.data.feedback.record import Decision, Prompt, item_id
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.kinds import PROMPT
from lit_posttrain.data.rows.turns import conversation

Ranks = list[int | None]


def prompt_of(fields: Mapping[str, Any]) -> str:
    """The name of the field with the prompt: a usual one, or the only one.

    Raises:
        BadRow: it may be any of several.
    """
    named = [name for name in (*PROMPT, "input") if name in fields]
    if not named and len(fields) != 1:
        raise BadRow(
            "no prompt",
            f"no prompt among {', '.join(fields) or 'no fields'}; call the one with the prompt `prompt`",
        )
    return named[0] if named else next(iter(fields))


def imported(prompt: object, texts: Sequence[Mapping[str, Any]], annotator: str, where: str, **said: Any) -> Decision:
    """A decision of another tool. where: what tells it from others of the same annotator on the same item."""
    messages = conversation(prompt, "prompt", [], "user")
    item = item_id(messages, texts)
    made = hashlib.blake2b(json.dumps([item, annotator, where]).encode(), digest_size=12).hexdigest()
    return Decision(
        **{"id": made, "item": item, "annotator": annotator, "prompt": messages, "responses": [*texts], **said}
    )


@dataclass(frozen=True)
class Judged:
    """A prompt with its responses, the other columns of its row, and what was decided on it, if anything."""

    item: str
    prompt: Prompt
    responses: list[dict[str, Any]]
    columns: dict[str, Any]
    decisions: list[Decision] = field(default_factory=list)


def by_item(decisions: Iterable[Decision]) -> list[Judged]:
    """Each item with its decisions, in the order of the items' first ones."""
    found: dict[str, Judged] = {}
    for one in decisions:
        own = found.setdefault(one.item, Judged(one.item, one.prompt, one.responses, one.columns))
        own.decisions.append(one)
    return list(found.values())


def plain_prompt(prompt: Prompt) -> Any:
    """A prompt of one user message as its text, others as messages."""
    if not isinstance(prompt, str) and len(prompt) == 1 and set(prompt[0]) == {"role", "content"}:
        return prompt[0]["content"] if prompt[0]["role"] == "user" else prompt
    return prompt


def ranks_of(decision: Decision, lost: Counter[str], skips: bool = False) -> Ranks | None:
    """The ranks that a decision gives, counted from 0 without gaps; None if it gives none. lost: counts what a tool
    cannot hold. skips: it knows skipped items."""
    for name in ("strength", "criteria", "rejected"):
        if getattr(decision, name) is not None:
            lost[_LOST[name]] += 1
    if decision.messages:
        lost["written replies"] += 1
    if decision.outcome != "verdict":
        lost[f"{decision.outcome} items"] += not (skips and decision.outcome == "skipped")
        return None
    ranks: Ranks = list(decision.ranks or [])
    if decision.probability is not None and not ranks:
        lost["probabilities, of which the likelier side is kept"] += 1
        p = decision.probability
        ranks = [int(p < 0.5), int(p > 0.5)]
    levels = sorted({rank for rank in ranks if rank is not None})
    if len([rank for rank in ranks if rank is not None]) < 2:
        return None
    return [None if rank is None else levels.index(rank) for rank in ranks]


_LOST = {"strength": "strengths", "criteria": "scores on criteria", "rejected": "rejections"}


def told(lost: Counter[str], tool: str) -> list[str]:
    """What a tool's format cannot hold, in words."""
    return [f"{tool} has no place for {count} {what}" for what, count in lost.items() if count]


def not_annotated() -> NothingToLearn:
    """The reason why a record without a decision is dropped."""
    return NothingToLearn("not annotated", "nobody has annotated it")
