"""Describe the values of a row in words, and parse JSON text."""

from __future__ import annotations

import json
from typing import Any

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


def kind(value: object) -> str:
    """The kind of a value, in words for a message."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), f"{value!r}"[:40])


def not_text(value: object, where: str, wanted: str = "a string") -> BadRow:
    """The error for a value that must be text, or `wanted`."""
    remedy = {bool: "write it in quotes", int: "write it in quotes", float: "write it in quotes"}
    remedy |= {dict: "write it as text", type(None): "fill or remove it"}
    return BadRow("wrong type", f"{where} is {kind(value)}, not {wanted}; {remedy.get(type(value), 'mend it')}")
