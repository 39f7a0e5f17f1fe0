"""Decisions as records that Argilla 2 reads."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lit_posttrain.data.feedback.argilla import NAMES, QUESTION, REASON
from lit_posttrain.data.feedback.foreign import Judged, plain_prompt, ranks_of, told


def to_argilla(items: Sequence[Judged]) -> tuple[list[dict[str, Any]], list[str]]:
    """Records for Argilla 2 (`Record.from_dict`), one for each item, with the fields prompt, response1, response2, ...,
    and the questions ranking and reason; and what of the decisions is not in them, in words. A judge's ranking is the
    suggestion. Ties are written as ranks, which Argilla keeps and does not export."""
    lost: Counter[str] = Counter()
    chat = any(not isinstance(plain_prompt(own.prompt), str) for own in items)
    return [_record(own, chat, lost) for own in items], told(lost, "Argilla")


def _record(own: Judged, chat: bool, lost: Counter[str]) -> dict[str, Any]:
    names = [f"response{place}" for place in range(1, len(own.responses) + 1)]
    metadata: dict[str, Any] = {}
    for name, response in zip(names, own.responses, strict=True):
        if response.get("model"):
            metadata[f"{name}_model"] = str(response["model"])
        if response.get("sampling"):
            metadata[f"{name}_sampling"] = json.dumps(response["sampling"])
        lost["thoughts of responses"] += bool(response.get("reasoning_content"))
    rankings: dict[str, dict[str, Any]] = {}
    reasons: dict[str, dict[str, Any]] = {}
    suggestions: dict[str, Any] = {}
    people: dict[str, str] = {}
    for one in own.decisions:
        ranks = ranks_of(one, lost)
        if ranks is None:
            continue
        if None in ranks:
            lost["partial rankings"] += 1
            continue
        value = _value(names, [rank for rank in ranks if rank is not None])
        if one.judge is not None:
            lost["further suggestions for an item"] += QUESTION in suggestions
            suggestions.setdefault(QUESTION, {"value": value, "score": None, "agent": one.annotator})
            continue
        user = _user(one.annotator)
        lost["earlier rankings of an item by the same person"] += user in rankings
        people[user] = one.annotator
        rankings[user] = {"value": value, "user_id": user}
        if one.reason:
            reasons[user] = {"value": one.reason, "user_id": user}
    if people:
        metadata[NAMES] = json.dumps(people, ensure_ascii=False)
    questions = {QUESTION: [*rankings.values()], REASON: [*reasons.values()]}
    prompt = own.prompt if chat and not isinstance(own.prompt, str) else plain_prompt(own.prompt)
    if chat and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return {
        "id": own.item,
        "fields": {"prompt": prompt, **{n: r.get("text", "") for n, r in zip(names, own.responses, strict=True)}},
        "metadata": metadata,
        "suggestions": suggestions,
        "responses": {name: said for name, said in questions.items() if said},
        "vectors": {},
        "status": "completed" if rankings else "pending",
        "_server_id": None,
    }


def _value(names: list[str], ranks: list[int]) -> list[Any]:
    """A ranking: the names, the best first; with ranks where some are tied."""
    order = sorted(range(len(names)), key=ranks.__getitem__)
    if len(set(ranks)) == len(ranks):
        return [names[place] for place in order]
    return [{"value": names[place], "rank": ranks[place] + 1} for place in order]


def _user(name: str) -> str:
    """Argilla knows users by a UUID: the name itself, or one made of it."""
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, name))
