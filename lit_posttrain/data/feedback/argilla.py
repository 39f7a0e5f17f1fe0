"""Argilla's ranking records as decisions.

Read are `dataset.records.to_json` of Argilla 2 (also flattened), and the rows that Argilla 1 put on the hub. Argilla
exports a ranking as names, the best first, without its ties.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lit_posttrain.data.feedback.foreign import (
    imported,
    not_annotated,
    prompt_of,
)
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.rows.bad_rows import BadRow

# what `to_argilla` calls its questions, and where it writes who is who
QUESTION, REASON, NAMES = "ranking", "reason", "annotators"
_AROUND = ("id", "status", "_server_id", "external_id", "metadata", "vectors", "score")


def is_argilla(row: Mapping[str, Any]) -> bool:
    """True for a record with questions of Argilla, of whatever kind."""
    return bool(_nested(row) or _flat_questions(row) or _hub_questions(row))


def from_argilla(row: Mapping[str, Any]) -> list[Decision]:
    """The decisions in a record: one for each annotator, and one of what was suggested.

    Raises:
        BadRow: no question of it is a ranking of its fields.
        NothingToLearn: nobody has answered it.
    """
    fields, answers, metadata = _parts(row)
    given = [(question, name) for question, _, _, value, _ in answers for name, _ in _ranked(value)]
    question = next((question for question, _ in given), None)
    if question is None:
        if any(value is not None for _, _, _, value, _ in answers):
            raise BadRow("no ranking", "an Argilla record without a ranking; of its questions only rankings are read")
        raise not_annotated()
    options = list(dict.fromkeys(name for asked, name in given if asked == question))
    columns = {option: _field(option, fields) for option in options}
    texts = sorted(columns.values(), key=list(fields).index)
    rest = {name: value for name, value in fields.items() if name not in texts}
    asked = prompt_of(rest)
    responses = [{"text": fields[name], **_origin(name, metadata)} for name in texts]
    others = {name: value for name, value in rest.items() if name != asked}
    others |= {k: v for k, v in metadata.items() if k != NAMES and not any(k.startswith(f"{n}_") for n in texts)}
    names = json.loads(str(metadata.get(NAMES) or "{}"))
    reasons = {who: str(value) for q, who, _, value, _ in answers if q == REASON and isinstance(value, str)}
    found = []
    for name, who, status, value, suggested in answers:
        if name != question or status == "draft" or (value is None and status != "discarded"):
            continue
        ranks: list[int | None] = [None] * len(texts)
        for option, rank in _ranked(value):
            ranks[texts.index(columns[option])] = rank
        said: dict[str, Any] = {"outcome": "skipped"} if status == "discarded" else {"ranks": ranks}
        if suggested:
            said["judge"] = {"model": who}
        said["reason"] = "" if suggested else reasons.get(who, "")
        found.append(imported(fields[asked], responses, names.get(who, who), question, columns=others, **said))
    if not found:
        raise not_annotated()
    return found


# of a question: its name, who answered, the status, the value, and True for a suggestion
_Answer = tuple[str, str, str | None, Any, bool]


def _parts(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[_Answer], dict[str, Any]]:
    """The fields, the answers, and the metadata of a record."""
    if _nested(row):
        answers = [
            (name, str(one.get("user_id")), one.get("status"), one.get("value"), False)
            for name, said in (row.get("responses") or {}).items()
            for one in said or []
        ]
        for name, one in (row.get("suggestions") or {}).items():
            answers.append((name, str(one.get("agent") or "suggestion"), None, one.get("value"), True))
        return {k: v for k, v in row["fields"].items() if v is not None}, answers, dict(row.get("metadata") or {})
    flat = _flat_questions(row)
    answers = list(_flat_answers(row, flat)) if flat else list(_hub_answers(row, _hub_questions(row)))
    questions = flat or _hub_questions(row)
    own = {name for name in row if name in questions or any(name.startswith((f"{q}.", f"{q}-")) for q in questions)}
    metadata = row.get("metadata") or {}
    metadata = json.loads(metadata) if isinstance(metadata, str) else dict(metadata)
    fields = {k: v for k, v in row.items() if k not in own and k not in _AROUND and v is not None}
    if flat:  # metadata stands among the fields
        metadata |= {k: fields.pop(k) for k in [*fields] if k == NAMES or k.endswith(("_model", "_sampling"))}
    return fields, answers, metadata


def _flat_answers(row: Mapping[str, Any], questions: Iterable[str]) -> Iterator[_Answer]:
    for name in questions:
        values = row.get(f"{name}.responses") or []
        users = row.get(f"{name}.responses.users") or [None] * len(values)
        states = row.get(f"{name}.responses.status") or [None] * len(values)
        for value, user, status in zip(values, users, states, strict=True):
            yield name, str(user), status, value, False
        if row.get(f"{name}.suggestion") is not None:
            agent = row.get(f"{name}.suggestion.agent")
            yield name, str(agent or "suggestion"), None, row[f"{name}.suggestion"], True


def _hub_answers(row: Mapping[str, Any], questions: Iterable[str]) -> Iterator[_Answer]:
    for name in questions:
        for one in _listed(row[name]):
            yield name, str(one.get("user_id")), one.get("status"), one.get("value"), False
        if row.get(f"{name}-suggestion"):
            about = row.get(f"{name}-suggestion-metadata") or {}
            yield name, str(about.get("agent") or "suggestion"), None, row[f"{name}-suggestion"], True


def _nested(row: Mapping[str, Any]) -> bool:
    parts = [row.get("fields"), row.get("responses"), row.get("suggestions")]
    return {"fields", "responses", "suggestions"} <= set(row) and all(isinstance(p, dict | None) for p in parts)


def _flat_questions(row: Mapping[str, Any]) -> list[str]:
    found = [name.removesuffix(".responses") for name in row if f"{name}.users" in row and name.endswith(".responses")]
    return found + [
        n.removesuffix(".suggestion") for n in row if f"{n}.agent" in row and n.removesuffix(".suggestion") not in found
    ]


def _hub_questions(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if f"{name}-suggestion" in row and (row[name] is None or _is_answers(row[name]))]


def _is_answers(value: object) -> bool:
    keys = {"user_id", "value", "status"}
    if isinstance(value, dict):  # as `datasets` stores a list of objects
        return set(value) == keys
    return isinstance(value, list) and all(isinstance(one, dict) and set(one) == keys for one in value)


def _listed(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [dict(zip(value, one, strict=True)) for one in zip(*value.values(), strict=True)]
    return value or []


def _ranked(value: Any) -> list[tuple[str, int]]:
    """The names of a ranking with their ranks from 0; [] for the answer to another kind of question."""
    if isinstance(value, dict) and {"rank", "value"} <= set(value):
        pairs = list(zip(value["value"] or [], value["rank"] or [], strict=True))
    elif isinstance(value, list) and value and all(isinstance(one, dict) and "value" in one for one in value):
        pairs = [(one["value"], one.get("rank", place)) for place, one in enumerate(value)]
    elif isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value):
        pairs = [(name, place) for place, name in enumerate(value)]
    else:
        return []
    levels = sorted({int(rank) for _, rank in pairs})
    return [(str(name), levels.index(int(rank))) for name, rank in pairs]


def _field(option: str, fields: Mapping[str, Any]) -> str:
    """The field that an option of a ranking stands for."""
    alike = [name for name in fields if _bare(name) == _bare(option)]
    if len(alike) != 1:
        raise BadRow(
            "no field",
            f"the ranking has `{option}`, and the fields are {', '.join(fields)}; call fields and options alike",
        )
    return alike[0]


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _origin(name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = {"model": metadata.get(f"{name}_model")}
    if sampling := metadata.get(f"{name}_sampling"):
        found["sampling"] = json.loads(sampling)
    return {key: value for key, value in found.items() if value}
