"""What the page sends, checked, as a decision."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.feedback.record import Decision, now
from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.values import is_number
from lit_posttrain.feedback.annotate.tasks import Mode, Task

SCALE = (1, 2, 3, 4, 5)  # of every criterion
STRENGTHS = (1, 2, 3)  # slightly, clearly, much better
_ID = re.compile(r"[\w-]{8,64}", re.ASCII)
_FIELDS = {
    "id", "item", "outcome", "ranks", "rejected", "strength", "criteria", "turns", "order", "reason", "seconds"
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What annotators are asked. criteria: names of what they rate. guidelines: HTML that is shown beside the item."""

    mode: Mode
    criteria: Sequence[str] = ()
    guidelines: str = ""


def decision_of(said: Mapping[str, Any], task: Task, annotator: str, question: Question) -> Decision:
    """The decision that the page sent.

    Raises:
        BadRow: something is missing, or is not what the page would send.
    """
    if unknown := set(said) - _FIELDS:
        raise BadRow("answer", f"unknown fields {', '.join(sorted(map(repr, unknown)))}")
    if said.get("outcome") not in ("verdict", "skipped"):
        raise BadRow("answer", "`outcome` is neither verdict nor skipped")
    if not isinstance(said.get("reason", ""), str):
        raise BadRow("answer", "`reason` is no text")
    told: dict[str, Any] = {}
    if said["outcome"] == "verdict":
        told = {"rank": _ranks, "pair": _pair, "rate": _ratings, "write": _written}[question.mode](said, task, question)
    made = Decision(
        id=_id(said),
        item=task.id,
        annotator=annotator,
        prompt=task.prompt,
        responses=task.responses,
        outcome=said["outcome"],
        order=said.get("order") if task.responses else None,
        reason=said.get("reason", "").strip(),
        seconds=_seconds(said.get("seconds")),
        time=now(),
        source=task.source,
        columns=task.columns if task.gold is None else {**task.columns, "gold": task.gold},
        **told,
    )
    return Decision.of(made.row())  # checks every field


def answers_to(decision: Decision, question: Question) -> bool:
    """True if a decision has what this question asks, and not what another mode would have asked."""
    if decision.outcome != "verdict":
        return True
    if question.mode == "rate":
        return decision.criteria is not None and set(decision.criteria) == set(question.criteria)
    return (decision.messages is not None) == (question.mode == "write") and decision.criteria is None


def undo_of(said: Mapping[str, Any], annotator: str) -> Decision:
    """The line that takes a decision back, as the page sent it.

    Raises:
        BadRow: something is missing, or is not what the page would send.
    """
    for name in ("item", "undoes"):
        if not isinstance(said.get(name), str):
            raise BadRow("answer", f"`{name}` is missing, or is no text")
    undone = {"item": said["item"], "undoes": said["undoes"]}
    return Decision(id=_id(said), annotator=annotator, outcome="undone", time=now(), **undone)


def _id(said: Mapping[str, Any]) -> str:
    given = said.get("id")
    if not isinstance(given, str) or not _ID.fullmatch(given):
        raise BadRow("answer", "`id` is missing, or is no identifier of 8 to 64 letters, digits and dashes")
    return given


def _ranks(said: Mapping[str, Any], task: Task, question: Question) -> dict[str, Any]:
    ranks, rejected = said.get("ranks"), said.get("rejected")
    count = len(task.responses)
    for name, values, kinds in (("ranks", ranks, (int, type(None))), ("rejected", rejected, (bool,))):
        right = isinstance(values, list) and len(values) == count
        if values is not None and not (right and all(isinstance(one, kinds) for one in values)):
            raise BadRow("answer", f"`{name}` does not have one value for each of {count} responses")
    flagged = any(rejected or [])
    if sum(one is not None for one in ranks or []) < 2 and not flagged:
        raise BadRow("answer", "rank at least two responses, mark what is not acceptable, or skip the item")
    strength = said.get("strength")
    if strength is not None and strength not in STRENGTHS:
        raise BadRow("answer", f"`strength` is {strength!r}, and not one of {STRENGTHS}")
    if ranks is not None and all(one is None for one in ranks):
        ranks = None
    return {"ranks": ranks, "rejected": rejected if flagged else None, "strength": strength}


def _pair(said: Mapping[str, Any], task: Task, question: Question) -> dict[str, Any]:
    told = _ranks(said, task, question)
    if told["ranks"] not in ([0, 1], [1, 0], [0, 0]):
        raise BadRow("answer", "say which of the two is better, or that both are equal")
    return told


def _ratings(said: Mapping[str, Any], task: Task, question: Question) -> dict[str, Any]:
    """Scores, and the ranks that their means make where every response has every score."""
    criteria, count = said.get("criteria"), len(task.responses)
    if not isinstance(criteria, dict) or set(criteria) != set(question.criteria):
        raise BadRow("answer", f"`criteria` does not have {', '.join(question.criteria)}")
    for name, scores in criteria.items():
        if not isinstance(scores, list) or len(scores) != count or any(one not in (None, *SCALE) for one in scores):
            raise BadRow("answer", f"`{name}` does not have one score, {SCALE[0]} to {SCALE[-1]}, for each response")
    every = list(zip(*criteria.values(), strict=True))
    if all(one is None for scores in every for one in scores):
        raise BadRow("answer", "rate at least one response, or skip the item")
    ranks: list[int] | None = None
    if count > 1 and all(None not in scores for scores in every):
        sums = [sum(scores) for scores in every]
        ranks = [sorted(set(sums), reverse=True).index(one) for one in sums]
    return {"criteria": criteria, "ranks": ranks}


def _written(said: Mapping[str, Any], task: Task, question: Question) -> dict[str, Any]:
    """The prompt with the turns that were written: of the assistant, then of user and assistant in turn."""
    turns = said.get("turns")
    if not isinstance(turns, list) or len(turns) % 2 == 0 or not all(isinstance(one, str) for one in turns):
        raise BadRow("answer", "`turns` is no list of texts that ends with one of the assistant")
    if not all(one.strip() for one in turns):
        raise BadRow("answer", "a turn is empty; write it, or remove it")
    roles = ["assistant" if n % 2 == 0 else "user" for n in range(len(turns))]
    written = [{"role": role, "content": one.rstrip()} for role, one in zip(roles, turns, strict=True)]
    return {"messages": [*task.prompt, *written]}


def _seconds(value: object) -> float | None:
    if not is_number(value) or value < 0:
        return None
    return round(value, 1)
