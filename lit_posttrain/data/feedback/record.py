"""The record of one decision: a prompt, its responses, and what a person or a judge said of them.

Decisions are lines of a JSONL file. A line has a prompt, responses and ranks under the names that `PreferenceData`
knows, so that the file of an annotator or a judge is preference data as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.values import is_number

VERSION = 1  # of the record's fields, in the column `feedback`
Outcome = Literal["verdict", "skipped", "unparsable", "failed", "undone"]
Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Decision:
    """What one annotator, a person or a judge, said of one item.

    K responses stand in the order of the data; everything that is said of them, apart from `order`, follows that order.

    id: unique; a line with the id of an earlier one of the same file is the same decision again. item: hash of prompt
    and responses, see `item_id`. prompt: a text, or messages. responses: K objects with `text`, and as far as it is
    known `model`, `sampling` and `reasoning_content`. annotator: a person's name, or a judge's. outcome: `verdict`; a
    person may have `skipped` the item, the answer of a judge may be `unparsable`, or its call have `failed`; `undone`
    takes back the decision whose id is in `undoes`. Only verdicts have anything of the next five.

    ranks: (K,) 0 is the best, equal ranks are ties, None for a response that was not ranked. probability: of two
    responses, that the first one is better. rejected: (K,) True for a response that is not acceptable, of any rank.
    strength: by how much the best response is better, in the annotator's own units. criteria: (K,) scores by criterion.
    messages: a conversation that a person wrote or edited.

    order: (K,) the place in `responses` of what was shown first, second, ... judge: model, kind, version and prompt
    hash of a judge; None for a person. reason: in the annotator's words. error: why there is no verdict. seconds: spent
    on it. time: UTC, ISO 8601. source: `file:line` of the item. columns: the other columns of the item's row.
    """

    id: str
    item: str
    annotator: str
    prompt: Prompt = ""
    responses: list[dict[str, Any]] = field(default_factory=list)
    outcome: Outcome = "verdict"
    ranks: list[int | None] | None = None
    probability: float | None = None
    rejected: list[bool] | None = None
    strength: float | None = None
    criteria: dict[str, list[float | None]] | None = None
    messages: list[dict[str, Any]] | None = None
    order: list[int] | None = None
    judge: dict[str, Any] | None = None
    reason: str = ""
    error: str = ""
    seconds: float | None = None
    time: str = ""
    source: str = ""
    undoes: str = ""
    columns: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The decision as a line's object, without empty fields."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        return {"feedback": VERSION, **{name: value for name, value in said.items() if value not in (None, "", {})}}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Decision:
        """The decision of a line's object.

        Raises:
            BadRow: a field is missing, or is not what it should be.
        """
        if row.get("feedback") != VERSION:
            told = f"`feedback` is {row.get('feedback')!r}; this version reads records of version {VERSION}"
            raise BadRow("record", told)
        known = {one.name for one in fields(cls)}
        if unknown := set(row) - known - {"feedback"}:
            raise BadRow(
                "record", f"unknown fields {', '.join(sorted(unknown))}; remove them, or put them in `columns`"
            )
        if lacking := [name for name in ("id", "item", "annotator") if not isinstance(row.get(name), str)]:
            raise BadRow("record", f"`{lacking[0]}` is missing, or is no text")
        made = cls(**{name: value for name, value in row.items() if name in known and value is not None})
        made._check()
        return made

    def _check(self) -> None:
        if self.outcome not in get_args(Outcome):
            raise BadRow("record", f"`outcome` is {self.outcome!r}; it is one of {', '.join(get_args(Outcome))}")
        if not _objects(self.responses):
            raise BadRow("record", "`responses` is not a list of objects")
        if not isinstance(self.prompt, str) and not _objects(self.prompt):
            raise BadRow("record", "`prompt` is neither a text nor a list of messages")
        for name, value in (("judge", self.judge), ("criteria", self.criteria), ("columns", self.columns)):
            if value is not None and not isinstance(value, dict):
                raise BadRow("record", f"`{name}` is {value!r}, and not an object")
        count = len(self.responses)
        said: dict[str, Any] = {"ranks": self.ranks, "rejected": self.rejected, "order": self.order}
        said |= {f"criteria.{name}": values for name, values in (self.criteria or {}).items()}
        for name, values in said.items():
            if values is not None and (not isinstance(values, list) or len(values) != count):
                raise BadRow("record", f"`{name}` does not have one value for each of {count} responses")
        self._check_kinds()
        for name, scores in (self.criteria or {}).items():
            for score in scores:
                if score is not None and not is_number(score):
                    raise BadRow("record", f"`criteria.{name}` has {score!r}; scores are numbers, or null")
        if self.order is not None and (
            any(type(one) is not int for one in self.order) or sorted(self.order) != list(range(count))
        ):
            raise BadRow("record", f"`order` is {self.order}; it names each of {count} responses once, counting from 0")
        for rank in self.ranks or []:
            if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
                raise BadRow("record", f"`ranks` has {rank!r}; ranks are whole numbers from 0, or null")
        if self.probability is not None and not (
            is_number(self.probability) and 0 <= self.probability <= 1 and count == 2
        ):
            raise BadRow("record", "`probability` is a number from 0 to 1, and of two responses alone")

    def _check_kinds(self) -> None:
        """What is neither looked at in `_check` nor free."""
        right = {
            "responses[].text": all(isinstance(one.get("text", ""), str) for one in self.responses),
            "rejected": all(isinstance(one, bool) for one in self.rejected or []),
            "strength": self.strength is None or is_number(self.strength),
            "messages": self.messages is None or _objects(self.messages),
            "seconds": self.seconds is None or is_number(self.seconds),
            "time": isinstance(self.time, str) and (not self.time or _iso(self.time)),
            **{name: isinstance(getattr(self, name), str) for name in ("reason", "error", "source", "undoes")},
        }
        if wrong := [name for name, is_right in right.items() if not is_right]:
            raise BadRow("record", f"`{wrong[0]}` is not {_KINDS.get(wrong[0], 'a text')}")


_KINDS = {
    "rejected": "a list of true and false",
    "strength": "a number",
    "messages": "a list of messages",
    "seconds": "a number",
    "time": "a time in ISO 8601",
}


def item_id(prompt: Prompt, responses: Sequence[Mapping[str, Any]]) -> str:
    """A hash of a prompt and its responses' texts: the same item in another file has the same one."""
    said = [prompt, [[one.get("text", ""), one.get("reasoning_content", "")] for one in responses]]
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=12).hexdigest()


def now() -> str:
    """The time, UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _iso(time: str) -> bool:
    try:
        return bool(datetime.fromisoformat(time))
    except ValueError:
        return False
