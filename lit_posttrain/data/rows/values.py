"""The values of a row: described in words, JSON text parsed, and numbers told from what only looks like one."""

from __future__ import annotations

import json
import sys
from typing import Any, TypeGuard

from lit_posttrain.data.rows.bad_rows import BadRow


def as_json(text: str, where: str) -> Any:
    """The value of JSON text.

    Raises:
        BadRow: the text is not valid JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        printed = text.lstrip().startswith(("[{'", "{'", "['"))
        remedy = "it looks like a Python list that was printed: write it with json.dumps" if printed else "mend it"
        raise BadRow("wrong type", f"{where}: not valid JSON ({fault_of(error)}); {remedy}") from error


def fault_of(error: ValueError | RecursionError) -> str:
    """What is wrong with JSON text, from the error of Python's parser."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} column {error.colno}"
    return "nested too deeply to read" if isinstance(error, RecursionError) else "a number of more than 4,300 digits"


def is_number(value: object) -> TypeGuard[int | float]:
    """True for a number that a float can hold; infinities, NaN, True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def finite_number(value: object) -> float | None:
    """A number, also written as text (a CSV file has nothing else); None for anything else, such as N/A."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return float(number) if is_number(number) else None


def kind(value: object) -> str:
    """The kind of a value, in words for a message."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"{value!r}"[:40])


def not_text(value: object, where: str, wanted: str = "a string") -> BadRow:
    """The error for a value that must be text, or `wanted`."""
    remedy = {bool: "write it in quotes", int: "write it in quotes", float: "write it in quotes"}
    remedy |= {dict: "write it as text", type(None): "fill or remove it"}
    return BadRow("wrong type", f"{where} is {kind(value)}, not {wanted}; {remedy.get(type(value), 'mend it')}")
