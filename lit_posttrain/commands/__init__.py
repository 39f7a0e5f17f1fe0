"""The subcommands of `lit-posttrain` that are not the Trainer's: each file is one, with `run(args) -> exit status`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser

from lit_posttrain.errors import OneLineErrors


class OneLineParser(OneLineErrors, ArgumentParser):
    """jsonargparse's parser with one-line mistakes."""

    names: tuple[str, ...] = ()

    def option_names(self) -> list[str]:
        """What `call` knows of its function."""
        return list(self.names)


def call(function: Callable[..., int], args: list[str], **given: Any) -> int:
    """Parse the arguments of a subcommand by its function's signature and docstring, and call it.

    given: arguments that the subcommand has parsed itself.
    """
    name = args[0]
    parser = OneLineParser(prog=f"lit-posttrain {name}", description=(function.__doc__ or "").split("\n\n")[0])
    parser.names = tuple(inspect.signature(function).parameters)
    parser.add_function_arguments(function, as_positional=False)
    parsed = parser.parse_args(args[1:])
    return function(**parser.instantiate_classes(parsed).as_dict() | given)
