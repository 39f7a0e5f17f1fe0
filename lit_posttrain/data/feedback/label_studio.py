"""Label Studio's tasks with a Ranker or Pairwise tag as decisions.

Read is its JSON export (not JSON_MIN). A Ranker's list is a ranking without ties; its buckets are levels, within which
responses are tied, and what was left in the list (`_`) is not ranked. Pairwise has no ties.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lit_posttrain.data.feedback.foreign import Ranks, imported, not_annotated, prompt_of
from lit_posttrain.data.feedback.record import Decision
from lit_posttrain.data.rows.bad_rows import BadRow

UNRANKED = "_"
PAIR = ("response1", "response2")  # what `to_pairwise` calls the responses
ORIGIN = ("model", "sampling", "reasoning_content")  # of an item, beside what Label Studio shows
# buckets whose order is known. The keys of an export are sorted by its data base, and say nothing
_BUCKETS = (
    ("best", "great", "chosen"),
    ("good", "better"),
    ("okay", "ok", "rest"),
    ("bad", "worse"),
    ("worst", "rejected"),
)
_SIDES = (("1", "2"), ("a", "b"), ("left", "right"), ("0", "1"))


def is_label_studio(row: Mapping[str, Any]) -> bool:
    """True for a task of Label Studio, with annotations of whatever kind."""
    annotated = isinstance(row.get("annotations"), list) or isinstance(row.get("predictions"), list)
    return annotated and isinstance(row.get("data"), dict)


def from_label_studio(row: Mapping[str, Any], buckets: Sequence[str] = ()) -> list[Decision]:
    """The decisions in a task: one for each annotation, and for each prediction. buckets: names of a Ranker's buckets,
    the best first, where their names do not say it.

    Raises:
        BadRow: the annotations are neither rankings nor pairwise, or do not fit the task's data.
        NothingToLearn: nobody has annotated it.
    """
    data = dict(row["data"])
    annotations = [one for one in row.get("annotations") or [] if isinstance(one, dict)]
    predictions = [one for one in row.get("predictions") or [] if isinstance(one, dict)]
    results = [part for one in (*annotations, *predictions) for part in one.get("result") or []]
    kinds = {str(part.get("type")) for part in results} - {"textarea"}
    cancelled = any(one.get("was_cancelled") for one in annotations)
    if not kinds and not cancelled:
        raise not_annotated()
    if kinds and kinds.isdisjoint(("ranker", "pairwise")):
        raise BadRow(
            "no ranking",
            f"annotations of the kinds {', '.join(sorted(kinds))}; of Label Studio `ranker` and `pairwise` are read",
        )
    listed = "pairwise" not in kinds and any(_are_items(value) for value in data.values())
    taken, responses, ids = _responses(data, pairwise=not listed and "ranker" not in kinds)
    rest = {name: value for name, value in data.items() if name not in taken}
    asked = prompt_of(rest)
    others = {name: value for name, value in rest.items() if name != asked}
    found = []
    for one, judged in [*((one, False) for one in annotations), *((one, True) for one in predictions)]:
        said = _said(one, ids, buckets)
        if said is None:
            continue
        who = said.pop("annotator")
        if judged:
            said["judge"] = {"model": who}
        where = f"label studio {one.get('id', '')}"
        found.append(imported(data[asked], responses, who, where, columns=others, **said))
    if not found:
        raise not_annotated()
    return found


def _responses(data: Mapping[str, Any], pairwise: bool) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """The keys of a task's data that hold responses, the responses, and the ids under which a ranking knows them."""
    if pairwise:
        sides = _sides(data)
        return sides, [{"text": str(data[name])} for name in sides], ["left", "right"]
    lists = [name for name, value in data.items() if _are_items(value)]
    if len(lists) != 1:
        raise BadRow("no items", f"{len(lists)} of {', '.join(data)} are lists of items with ids, where one is ranked")
    items = data[lists[0]]
    responses = []
    for item in items:
        body = next((item[key] for key in ("body", "text", "content", "html") if item.get(key)), item.get("title"))
        more = {key: item[key] for key in ORIGIN if item.get(key)}
        responses.append({"text": str(body or ""), **more})
    return lists, responses, [str(item["id"]) for item in items]


def _are_items(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "id" in one for one in value)


def _sides(data: Mapping[str, Any]) -> list[str]:
    """response1 and response2, or the only two texts whose keys differ in 1 and 2, a and b, or left and right."""
    texts = [name for name, value in data.items() if isinstance(value, str)]
    if set(PAIR) <= set(texts):
        return [*PAIR]
    found = []
    for one, other in _SIDES:
        for name in texts:
            stem = re.fullmatch(rf"(.*?){one}", name, re.IGNORECASE)
            pair = next((n for n in texts if stem and n != name and n.lower() == f"{stem[1]}{other}".lower()), None)
            if pair is not None:
                found.append([name, pair])
    if not found:
        raise BadRow("no sides", f"no two texts of {', '.join(data)} are called alike; call them {' and '.join(PAIR)}")
    if len(found) > 1:
        told = "; ".join(" and ".join(sides) for sides in found)
        raise BadRow("several sides", f"the responses may be {told}; call those that are {' and '.join(PAIR)}")
    return found[0]


def _said(one: Mapping[str, Any], ids: Sequence[str], buckets: Sequence[str]) -> dict[str, Any] | None:
    """The fields of an annotation's decision; None without one."""
    result = [part for part in one.get("result") or [] if isinstance(part, dict)]
    by = one.get("completed_by", one.get("model_version"))
    by = by.get("email") or by.get("id") if isinstance(by, dict) else by
    said: dict[str, Any] = {"annotator": str(by if by is not None else "unknown")}
    for part in result:
        meta = part.get("meta")
        if "completed_by" not in one and isinstance(meta, dict) and "annotator" in meta:  # as `to_ranker` wrote it
            said |= {"annotator": str(meta["annotator"]), "id": str(meta["id"])}
        if part.get("type") == "textarea" and part.get("from_name") == "reason":
            text = part.get("value", {}).get("text", "")
            said["reason"] = "\n".join(text) if isinstance(text, list) else str(text)
    said |= {"seconds": one.get("lead_time"), "time": one.get("created_at") or ""}
    if one.get("was_cancelled"):
        return {**said, "outcome": "skipped"}
    value = next((p.get("value") for p in result if p.get("type") in ("ranker", "pairwise")), None)
    if not isinstance(value, dict):
        return None
    if "selected" in value:
        return {**said, "ranks": _selected(value["selected"])}
    return {**said, "ranks": _ranked(value.get("ranker"), ids, buckets)}


def _selected(side: object) -> Ranks:
    if side not in ("left", "right"):
        raise BadRow("selected", f"`selected` is {side!r}, neither left nor right")
    return [0, 1] if side == "left" else [1, 0]


def _ranked(value: Any, ids: Sequence[str], buckets: Sequence[str]) -> Ranks:
    levels = [[one] for one in value] if isinstance(value, list) else _levels(value, ids, buckets)
    ranks: Ranks = [None] * len(ids)
    for rank, level in enumerate(levels):
        for one in level:
            if str(one) not in ids:
                raise BadRow("no item", f"the ranking has {one!r}, and the items are {', '.join(ids)}")
            ranks[ids.index(str(one))] = rank
    return ranks


def _levels(value: Any, ids: Sequence[str], buckets: Sequence[str]) -> list[list[str]]:
    if not isinstance(value, dict) or not all(isinstance(level, list) for level in value.values()):
        raise BadRow("ranker", f"`ranker` is {value!r}, neither a list nor buckets")
    named = {name: level for name, level in value.items() if name != UNRANKED}
    lone = len(named) == 1 and UNRANKED not in value and not buckets
    if lone and _place(next(iter(named)), buckets) is None:
        return [[one] for one in next(iter(named.values()))]  # of a Ranker without buckets
    places = {name: _place(name, buckets) for name in named}
    unknown = [name for name, place in places.items() if place is None]
    if unknown and len(named) > 1:
        raise BadRow(
            "buckets",
            f"nothing says which of the buckets {', '.join(named)} is better: convert the file with `lit-posttrain "
            "feedback convert`, whose --buckets lists them, the best first",
        )
    return [named[name] for name in sorted(named, key=lambda name: places[name] or 0)]


def _place(bucket: str, buckets: Sequence[str]) -> int | None:
    """Where a bucket stands, 0 for the best; None if nothing says it."""
    if buckets:
        return list(buckets).index(bucket) if bucket in buckets else None
    if numbered := re.fullmatch(r"rank[ _-]?(\d+)", bucket, re.IGNORECASE):
        return int(numbered[1])
    return next((place for place, names in enumerate(_BUCKETS) if bucket.lower() in names), None)
