"""Each response marked on weighted criteria, the reason before the mark of each. The score is the weighted mean of the
marks, each as a share of its scale from 0 to 1."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lit_posttrain.data.feedback.item import Item
from lit_posttrain.judges.backend import Call, Reply
from lit_posttrain.judges.constitution import Constitution, Principle
from lit_posttrain.judges.kinds.asking import Unparsable, quoted, whole
from lit_posttrain.judges.kinds.criteria import Criteria, Criterion
from lit_posttrain.judges.kinds.identity import SAMPLE, prompt_hash
from lit_posttrain.judges.kinds.marking import Marks, Question
from lit_posttrain.judges.kinds.shown import shown
from lit_posttrain.judges.spec import JudgeSpec

_TEXT = """You mark a response to a conversation on these criteria:
{criteria}
The length of the response does not count unless a criterion says so.

{shown}

Answer with one JSON object and nothing else. For each criterion it has an object with a short reason first and the mark
after it, in this form:
{form}"""
_NO_REASON = "..."
_ALONE = """You mark a response to a conversation by this rubric:
{criterion}

{shown}

{form}"""


class Rubric:
    """`Marking` of the kind rubric."""

    kind = "rubric"
    version = 2

    def __init__(self, criteria: Criteria) -> None:
        self.criteria = criteria

    @property
    def column(self) -> str:
        """The column with the criteria."""
        return self.criteria.column

    def questions(self, item: Item, index: int, view: Sequence[Principle], spec: JudgeSpec) -> list[Question]:
        """One question for all criteria that are marked in JSON, and one for each of the others."""
        criteria = self.criteria.of(item.columns, view)
        together = [one for one in criteria if one.pattern is None]
        alone = [one for one in criteria if one.pattern is not None]
        text = shown(item, [index])
        found: list[Question] = []
        if together:
            asked = _TEXT.format(
                criteria="\n".join(_line(one) for one in together),
                shown=text,
                form=_form(together),
            )
            found.append((_call(asked, spec, _schema(together)), partial(_read, together)))
        for one in alone:
            asked = _ALONE.format(criterion=one.description, shown=text, form=one.form)
            found.append((_call(asked, spec), partial(_extract, one)))
        return found

    def score(self, item: Item, marks: Mapping[str, float]) -> float:
        """The weighted mean of the marks as shares of their scales. Of principles each has the weight 1."""
        criteria = self.criteria.of(item.columns, [])
        by_name = {one.name: one for one in criteria}
        shares = {name: by_name.get(name, Criterion(name, "")) for name in marks}
        total = sum(one.weight for one in shares.values())
        return sum(one.weight * one.share(marks[name]) for name, one in shares.items()) / total

    def hashed(self, view: Sequence[Principle], constitution: Constitution, spec: JudgeSpec) -> str:
        """As `Marking.hashed`; the criteria of a column are those of the item, not of the judge."""
        column = self.column
        sample = Item(SAMPLE.prompt, SAMPLE.responses, {column: ["criterion"]} if column else {})
        read = self.criteria.hash if column or self.criteria.fixed else constitution
        return prompt_hash([call for call, _ in self.questions(sample, 0, view, spec)], read)


def _call(text: str, spec: JudgeSpec, schema: Mapping[str, Any] | None = None) -> Call:
    return Call([{"role": "user", "content": text}], spec.max_tokens, spec.temperature, schema=schema, seed=spec.seed)


def _line(criterion: Criterion) -> str:
    lowest, highest = criterion.scale
    return f"- {criterion.name}, from {lowest} (not at all) to {highest} (fully): {criterion.description}"


def _form(criteria: Sequence[Criterion]) -> str:
    """The form of a reply. It is no JSON: a model that repeats it has given no marks."""
    marks = (
        f'{json.dumps(one.name)}: {{"reason": "{_NO_REASON}", "mark": <{one.scale[0]} to {one.scale[1]}>}}'
        for one in criteria
    )
    return f"{{{', '.join(marks)}}}"


def _schema(criteria: Sequence[Criterion]) -> dict[str, Any]:
    """The reply's JSON schema: all is required and nothing else allowed, as strict structured output wants it."""

    def strict(properties: dict[str, Any]) -> dict[str, Any]:
        required = list(properties)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def marked(one: Criterion) -> dict[str, Any]:
        marks = {"type": "integer", "enum": list(range(one.scale[0], one.scale[1] + 1))}
        return strict({"reason": {"type": "string"}, "mark": marks})

    return strict({one.name: marked(one) for one in criteria})


def _read(criteria: Sequence[Criterion], reply: Reply) -> Marks:
    """Marks and reasons from a JSON object."""
    told = last_object(whole(reply))
    marks, reasons = {}, []
    for one in criteria:
        said = told.get(one.name)
        if not isinstance(said, dict) or "mark" not in said:
            raise Unparsable(f"the reply's JSON has no mark for {one.name}; its keys are {', '.join(told) or 'none'}")
        mark = said["mark"]
        if isinstance(mark, bool) or not isinstance(mark, int) or not one.scale[0] <= mark <= one.scale[1]:
            lowest, highest = one.scale
            raise Unparsable(
                f"the mark for {one.name} is {quoted(str(mark))}, not a whole number, {lowest} to {highest}"
            )
        marks[one.name] = float(mark)
        if said.get("reason") == _NO_REASON:
            raise Unparsable(f"the reason for {one.name} is that of the form, {_NO_REASON}")
        if said.get("reason"):
            reasons.append(f"{one.name}: {said['reason']}")
    return Marks(marks, "\n".join(reasons))


def _extract(criterion: Criterion, reply: Reply) -> Marks:
    """The mark that the criterion's pattern finds last in a reply."""
    text = whole(reply)
    found = criterion.pattern.findall(text) if criterion.pattern is not None else []
    if not found:
        raise Unparsable(f"extraction_regex finds no mark for {criterion.name} in {quoted(text)}")
    last = found[-1] if isinstance(found[-1], str) else found[-1][0]
    try:
        mark = float(last)
    except ValueError:
        mark = math.nan
    if not math.isfinite(mark):
        raise Unparsable(f"the mark for {criterion.name} is {quoted(last)}, which is no number")
    lowest, highest = criterion.scale
    if not lowest <= mark <= highest:
        raise Unparsable(
            f"the mark for {criterion.name} is {quoted(last)}, outside its scale from {lowest} to {highest}; give the "
            "criterion its `scale`"
        )
    return Marks({criterion.name: mark}, text)


def last_object(text: str) -> dict[str, Any]:
    """The JSON object that a reply is, or ends with: models put words before it, or fences around it.

    Raises:
        Unparsable: there is none.
    """
    bare = re.sub(r"\s*```\s*$", "", text)
    decoder = json.JSONDecoder()
    for start in (place.start() for place in re.finditer(r"\{", bare)):
        try:
            value, end = decoder.raw_decode(bare, start)
        except (ValueError, RecursionError):
            continue
        if not bare[end:].strip() and isinstance(value, dict):
            return value
    raise Unparsable(f"the reply does not end with a JSON object: {quoted(text[-60:])}")
