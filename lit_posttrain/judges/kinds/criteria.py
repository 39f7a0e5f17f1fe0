"""The criteria of a rubric, from a file or from a column of the row.

A file (YAML or JSON) or a column holds a list of texts, or of objects with `name`, `description`, `weight` (1 unless
given) and `scale` ([lowest, highest], [1, 5] unless given). Objects of graded environments with `rubric_str`,
`extraction_regex` and `grader_output_format_instruction` are read as they are: each is asked alone, and the regular
expression finds its mark in the reply, on a `scale` of [0, 1] unless given.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_posttrain.data.rows.bad_rows import BadRow
from lit_posttrain.data.rows.values import is_number
from lit_posttrain.errors import PostTrainError
from lit_posttrain.judges.constitution import Principle, read_settings

_MOST_LEVELS = 20  # each is named in the JSON schema
_TEXTS = ("description", "criterion", "text")


@dataclass(frozen=True)
class Criterion:
    """One criterion. scale: the lowest and the highest mark. pattern: regular expression whose first group is the mark
    in a reply of the form that `form` asks for; None for marks in a JSON object."""

    name: str
    description: str
    weight: float = 1.0
    scale: tuple[int, int] = (1, 5)
    pattern: re.Pattern[str] | None = None
    form: str = ""

    def share(self, mark: float) -> float:
        """The mark from 0 to 1."""
        lowest, highest = self.scale
        return (mark - lowest) / (highest - lowest)


@dataclass(frozen=True)
class Criteria:
    """Where criteria come from. fixed: those of a file, () for none. column: the rows' column that has them, "" for
    none. With neither, principles are the criteria."""

    fixed: tuple[Criterion, ...] = ()
    column: str = ""

    @property
    def hash(self) -> str:
        """Of all that is in the file, or of the column's name: marks and scores depend on it."""
        told = [vars(one) | {"pattern": one.pattern and one.pattern.pattern} for one in self.fixed]
        return hashlib.blake2b(json.dumps([self.column, told]).encode(), digest_size=8).hexdigest()

    def of(self, columns: Mapping[str, Any], principles: Sequence[Principle]) -> tuple[Criterion, ...]:
        """The criteria of a row.

        Raises:
            BadRow: the row lacks the column, or it holds no criteria.
        """
        if self.fixed:
            return self.fixed
        if not self.column:
            return tuple(Criterion(one.name, f"The response {one.prefer}.") for one in principles)
        if columns.get(self.column) is None:
            raise BadRow("criteria", f"no column `{self.column}` with the criteria of the rubric")
        told = columns[self.column]
        try:
            return as_criteria(json.loads(told) if isinstance(told, str) else told)
        except ValueError as problem:
            raise BadRow("criteria", f"`{self.column}`: {problem}") from problem


def read_criteria(given: str | None) -> Criteria:
    """The criteria of a file, or the column that has them: what is no file is the name of a column.

    Raises:
        PostTrainError: a file is missing, or holds no criteria.
    """
    if given is None:
        return Criteria()
    if not Path(given).is_file() and not re.search(r"[/\\]|\.(ya?ml|json)$", given):
        return Criteria(column=given)
    told = read_settings(given, "file of criteria")
    try:
        return Criteria(as_criteria(told.get("criteria") if isinstance(told, dict) else told))
    except ValueError as problem:
        raise PostTrainError(f"{given}: {problem}") from problem


def as_criteria(told: Any) -> tuple[Criterion, ...]:
    """Criteria from a list of texts or objects.

    Raises:
        ValueError: it is none, with what was found.
    """
    if not isinstance(told, list) or not told:
        raise ValueError("criteria are a list of texts or objects, with one entry at least")
    made = tuple(_criterion(one, number) for number, one in enumerate(told, 1))
    names = [one.name for one in made]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two criteria are called {min(twice)}; give each a name of its own")
    return made


def _criterion(told: Any, number: int) -> Criterion:
    where, name = f"criterion {number}", f"criterion {number}"
    if isinstance(told, str) and told.strip():
        return Criterion(name, told.strip())
    if not isinstance(told, dict):
        raise ValueError(f"{where} is neither a text nor an object")
    given = {key: value for key, value in told.items() if value is not None}
    name, weight = given.pop("name", name), given.pop("weight", 1.0)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: its name is no text")
    if not is_number(weight) or weight <= 0:
        raise ValueError(f"{where}: its weight is {weight!r}; a weight is a number above 0")
    if "rubric_str" in given:
        return _with_pattern(given, where, name, float(weight))
    scale = _scale(given.pop("scale", [1, 5]), where)
    if scale[1] - scale[0] >= _MOST_LEVELS:
        raise ValueError(f"{where}: its scale is {[*scale]}; it has at most {_MOST_LEVELS} marks")
    texts = [given.pop(key) for key in _TEXTS if key in given]
    if len(texts) != 1 or not isinstance(texts[0], str) or not texts[0].strip():
        raise ValueError(f"{where} has no text `description`")
    if given:
        raise ValueError(f"{where} has {', '.join(sorted(given))}, which is not known; remove it")
    return Criterion(name.strip(), texts[0].strip(), float(weight), scale)


def _scale(told: Any, where: str) -> tuple[int, int]:
    whole = isinstance(told, list) and len(told) == 2 and all(isinstance(mark, int) for mark in told)
    if not whole or told[0] >= told[1]:
        raise ValueError(f"{where}: its scale is {told!r}; one is two whole numbers such as [1, 5], the lowest first")
    return told[0], told[1]


def _with_pattern(given: dict[str, Any], where: str, name: str, weight: float) -> Criterion:
    keys = ("rubric_str", "extraction_regex", "grader_output_format_instruction")
    if lacking := [key for key in keys if not isinstance(given.get(key), str)]:
        raise ValueError(f"{where} lacks {', '.join(lacking)}")
    try:
        pattern = re.compile(given["extraction_regex"], re.DOTALL)
    except re.error as problem:
        raise ValueError(f"{where}: extraction_regex is no regular expression ({problem})") from problem
    if not pattern.groups:
        raise ValueError(f"{where}: extraction_regex has no group ( ) around the mark")
    scale = _scale(given.get("scale", [0, 1]), where)
    return Criterion(name, given["rubric_str"].strip(), weight, scale, pattern, given[keys[2]].strip())
