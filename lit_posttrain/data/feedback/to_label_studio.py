"""Decisions as tasks that Label Studio imports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_posttrain.data.feedback.foreign import Judged, Ranks, plain_prompt, ranks_of, told
from lit_posttrain.data.feedback.label_studio import ORIGIN, PAIR, UNRANKED
from lit_posttrain.data.feedback.record import Decision

# a decision, the value of its region, and what is around the value
_Answer = tuple[Decision, dict[str, Any] | None, dict[str, Any]]


def to_ranker(items: Sequence[Judged]) -> tuple[list[dict[str, Any]], list[str], str]:
    """Tasks with a Ranker, one for each item; what of the decisions is not in them, in words; and the labeling
    configuration. If any decision has ties or unranked responses, the Ranker has buckets."""
    lost: Counter[str] = Counter()
    ranks = {id(one): ranks_of(one, lost, skips=True) for own in items for one in own.decisions}
    given = [found for found in ranks.values() if found is not None]
    bucketed = any(None in found or len(set(found)) < len(found) for found in given)
    most = max((rank for found in given for rank in found if rank is not None), default=0) + 1
    names = [f"rank_{place}" for place in range(1, most + 1)] if bucketed else []
    tasks = []
    for own in items:
        ids = [str(place) for place in range(1, len(own.responses) + 1)]
        shown = [
            {"id": i, "title": f"Response {i}", "body": one.get("text", ""), **_beside(one)}
            for i, one in zip(ids, own.responses, strict=True)
        ]
        answers: list[_Answer] = []
        for one in own.decisions:
            found = ranks[id(one)]
            order = None if found is None else {name: _at(found, place, ids) for place, name in enumerate(names)}
            if found is not None and order is not None:
                if bucketed:
                    order[UNRANKED] = _at(found, None, ids)
                else:
                    order = {"rank": sorted(ids, key=lambda i: found[int(i) - 1] or 0)}
            value = None if order is None else {"ranker": order}
            answers.append((one, value, {"type": "ranker", "from_name": "rank", "to_name": "items"}))
        tasks.append(_task(own, {"items": shown}, answers))
    inner = "".join(f'<Bucket name="{name}"/>' for name in names)
    ranker = f'<Ranker name="rank" toName="items">{inner}</Ranker>' if names else '<Ranker name="rank" toName="items"/>'
    return tasks, told(lost, "Label Studio"), _interface(items, f'<List name="items" value="$items"/>{ranker}')


def to_pairwise(items: Sequence[Judged]) -> tuple[list[dict[str, Any]], list[str], str]:
    """As `to_ranker`, with a Pairwise tag: of items with two responses."""
    lost: Counter[str] = Counter()
    lost["items with another number of responses than two"] = sum(len(own.responses) != 2 for own in items)
    lost["thoughts of responses"] = sum(bool(r.get("reasoning_content")) for own in items for r in own.responses)
    tasks = []
    pairs = [own for own in items if len(own.responses) == 2]
    for own in pairs:
        sides = {name: one.get("text", "") for name, one in zip(PAIR, own.responses, strict=True)}
        answers: list[_Answer] = []
        for one in own.decisions:
            found = ranks_of(one, lost, skips=True)
            if found in ([0, 1], [1, 0]):
                value = {"selected": "left" if found == [0, 1] else "right"}
                answers.append((one, value, {"type": "pairwise", "from_name": "pair", "to_name": "response1"}))
            elif found is not None:
                lost["ties"] += 1
            elif one.outcome == "skipped":
                answers.append((one, None, {}))
        tasks.append(_task(own, sides, answers))
    shown = "".join(f'<Text name="{name}" value="${name}"/>' for name in PAIR)
    pair = f'<Pairwise name="pair" toName="response1,response2"/>{shown}'
    return tasks, told(lost, "Label Studio's Pairwise"), _interface(pairs, pair)


def _at(ranks: Ranks, rank: int | None, ids: Sequence[str]) -> list[str]:
    return [i for i, own in zip(ids, ranks, strict=True) if own == rank]


def _beside(response: Mapping[str, Any]) -> dict[str, Any]:
    return {key: response[key] for key in ORIGIN if response.get(key)}


def _task(item: Judged, data: Mapping[str, Any], answers: Iterable[_Answer]) -> dict[str, Any]:
    annotations, predictions = [], []
    for one, value, region in answers:
        if value is None and one.outcome != "skipped":
            continue
        about = {"meta": {"annotator": one.annotator, "id": one.id}}
        result = [] if value is None else [{"id": one.id[:10], **region, "value": value, **about}]
        if one.reason or value is None:
            text = {"type": "textarea", "from_name": "reason", "to_name": "prompt", "value": {"text": [one.reason]}}
            result.append({"id": f"{one.id[:9]}r", **text, **about})
        if one.judge is not None:
            predictions.append({"model_version": one.annotator, "result": result})
        else:
            timed = {"lead_time": one.seconds, "created_at": one.time}
            known = {name: value for name, value in timed.items() if value}
            annotations.append({"result": result, "was_cancelled": value is None, **known})
    beside = {name: value for name, value in item.columns.items() if name not in ("prompt", *data)}
    return {
        "data": {**beside, "prompt": plain_prompt(item.prompt), **data},
        "annotations": annotations,
        "predictions": predictions,
    }


def _interface(items: Sequence[Judged], tags: str) -> str:
    """The labeling configuration that shows such tasks."""
    texts = all(isinstance(plain_prompt(own.prompt), str) for own in items)
    dialogue = '<Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="role" textKey="content"/>'
    prompt = '<Text name="prompt" value="$prompt"/>' if texts else dialogue
    return f'<View>{prompt}{tags}<TextArea name="reason" toName="prompt"/></View>'
