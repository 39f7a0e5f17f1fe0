"""The subcommands of `lit-posttrain` that are not the Trainer's: each file is one, with `run(args) -> exit status`."""

from __future__ import annotations

from collections.abc import Callable

from jsonargparse import ArgumentParser

from lit_posttrain.errors import OneLineErrors


class OneLineParser(OneLineErrors, ArgumentParser):
    """jsonargparse's parser with one-line mistakes."""


def call(function: Callable[..., int], args: list[str]) -> int:
    """Parse the arguments of a subcommand by its function's signature and docstring, and call it."""
    name = args[0]
    parser = OneLineParser(prog=f"lit-posttrain {name}", description=(function.__doc__ or "").split("\n\n")[0])
    parser.add_function_arguments(function, as_positional=False)
    parsed = parser.parse_args(args[1:])
    return function(**parser.instantiate_classes(parsed).as_dict())
