"""Changes to jsonargparse's parsers: errors that are raised, exact names, and values as they were written."""

from __future__ import annotations

import json
from ast import literal_eval
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from lit_posttrain.cli.parsing.values import as_json, as_yaml, guarded, plain
from lit_posttrain.errors import PostTrainError, first_line


class UsageError(PostTrainError):
    """An error of jsonargparse, with its message."""


class ExactParser:
    """Mixin for argument parsers: a mistake is raised, instead of printed below the whole usage; half an option's name
    is a mistake too; and nested values are read as they were meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UsageError. Parsers of nested options raise it too, and the outer one adds where it was."""
        raise UsageError(str(message)) from ex

    def dump(self, cfg: Any, **options: Any) -> str:
        """As jsonargparse does, to print or save a config as YAML, with every text as it was written: that reads those
        in mappings once more, and leaves away quotes without which `1e3` would be a number."""
        options["format"] = "json"
        written = super().dump(guarded(cfg), **options)  # type: ignore[misc]  # as above
        header = "".join(f"# {line}\n" for line in self.dump_header or ())  # type: ignore[attr-defined]  # likewise
        return header + as_yaml(plain(json.loads(written)))

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """As jsonargparse does. To a class it hands nested options on as Python prints them
        (`--init_args={'x': None}`), and reads them as YAML, which knows no None: here they are as they should be."""
        if isinstance(args, list) and len(args) == 1:
            name, joined, value = str(args[0]).partition("=")
            if value == "None":
                args = [f"{name}=null"]
            elif joined and value[:1] in ("[", "{"):
                with suppress(ValueError, SyntaxError):
                    args = [f"{name}={as_json(literal_eval(value))}"]
        return super().parse_args(args, *rest, **options)  # type: ignore[misc]  # of the parser that this is mixed into

    def built(self, cfg: Any, **options: Any) -> Any:
        """The objects of a parsed config; texts in mappings stay as they were written.

        Raises:
            PostTrainError: as `made`. jsonargparse would try the other alternatives of a union, and say at the end that
                none of them fits.
        """
        refused: list[PostTrainError] = []

        def build(kind: Any, /, *given: Any, **named: Any) -> Any:  # options may be called kind
            try:
                return made(kind, *given, **plain(named))
            except PostTrainError as problem:
                refused.append(problem)
                raise

        try:
            return self.instantiate(guarded(cfg), instantiators=[(build, object, True)], **options)  # type: ignore[attr-defined]  # as above
        except Exception:
            if refused:
                raise refused[0]  # noqa: B904  # it has its own cause
            raise


def made(kind: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
    """An object of a class that a config names.

    Raises:
        PostTrainError: if the constructor refuses its arguments: the name of the class and the message.
    """
    try:
        return kind(*given, **named)
    except (ValueError, TypeError, AttributeError, AssertionError, ImportError) as problem:
        name, said = getattr(kind, "__name__", str(kind)), first_line(problem)
        if "__init__() missing" in said and not said.startswith(f"{name}."):  # of a base class
            said += f"; let {name}.__init__ take **options, and pass them on: super().__init__(**options)"
        raise PostTrainError(f"{name}: {said} (--traceback shows where in the code)") from problem
