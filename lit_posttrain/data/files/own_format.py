"""Rows in a format of your own: a function turns each into a row with recognised columns."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from lit_posttrain.data.files.annotations import unfolded
from lit_posttrain.data.files.source import Source
from lit_posttrain.data.rows.bad_rows import BadRow, NothingToLearn
from lit_posttrain.data.rows.values import kind
from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import imported, raised_at, said_by


def in_format(sources: list[Source], path: str | None) -> list[Source]:
    """The sources with each row passed through the function at the import path `path`; for None with the decisions of
    annotation tools as rows, see `unfolded`.

    Their digest includes the source code of the function's module, so that an edit rebuilds the cache.

    Raises:
        PostTrainError: `path` does not lead to a function that takes one row.
    """
    if path is None:
        return [unfolded(source) for source in sources]
    try:
        function = imported(path)
    except PostTrainError as problem:
        raise PostTrainError(f"--data.format {problem}") from problem
    if not callable(function) or isinstance(function, type):
        raise PostTrainError(
            f"--data.format {path} is not a function; name one that takes a row, a dict, and returns one"
        )
    _require_parameter(function, path)
    code = f"{path} {hashlib.blake2b(_code(function, path), digest_size=16).hexdigest()}"
    return [
        replace(source, rows=partial(_rows, source.rows, function, path), part=f"{source.part} {code}", by=path)
        for source in sources
    ]


def _require_parameter(function: Callable[..., Any], path: str) -> None:
    with suppress(ValueError):  # a C function may not tell
        signature = inspect.signature(function)
        try:
            signature.bind({})
        except TypeError:
            taken = ", ".join(signature.parameters)
            raise PostTrainError(
                f"--data.format {path} takes ({taken}), and is called with the row alone, a dict: let it take one "
                "argument"
            ) from None


def _rows(
    rows: Callable[[], Iterator[tuple[int, object]]], function: Callable[[dict[str, Any]], Any], path: str
) -> Iterator[tuple[int, object]]:
    for line, row in rows():
        yield line, _read(function, row, path) if isinstance(row, dict) else row


def _read(function: Callable[[dict[str, Any]], Any], row: dict[str, Any], path: str) -> dict[str, Any] | BadRow:
    try:
        found = function(row)
    except Exception as problem:  # whatever its code does
        told = f"{path} fails at {raised_at(problem)}: {said_by(problem)}; mend it, or the row"
        return BadRow(f"{path} failed", told)
    if found is None:
        return NothingToLearn(f"left out by {path}", f"{path} returned None for it")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        given = "a dict whose keys are not all texts" if isinstance(found, dict) else kind(found)
        what = f"{path} returned {given}; it must return a row, a dict of named columns, or None to leave it out"
        return BadRow(f"{path} failed", what)
    return found


def _code(function: Any, path: str) -> bytes:
    """The source code of the module that `path` names and of the one that defines the function, other parts of which it
    may use; that of the function alone if it was written in a notebook."""
    while isinstance(function, partial):
        function = function.func
    packages = list(accumulate(path.split("."), "{}.{}".format))
    named = next(sys.modules[name] for name in reversed(packages) if name in sys.modules)
    files = [getattr(module, "__file__", None) for module in (named, inspect.getmodule(function))]
    if any(files):
        return b"".join(Path(file).read_bytes() for file in dict.fromkeys(files) if file is not None)
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError) as problem:
        told = f"--data.format {path}: its source code is not there to tell when it changes; write it into a module"
        raise PostTrainError(told) from problem
