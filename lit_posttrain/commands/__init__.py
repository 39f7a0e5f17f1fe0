"""The subcommands of `lit-posttrain` that are not the Trainer's: each file is one, with `run(args) -> exit status`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import ArgumentParser

from lit_posttrain.command_line.option_tree import Option, OptionTree
from lit_posttrain.command_line.parser import ExactParser
from lit_posttrain.command_line.reader import CommandLine
from lit_posttrain.command_line.signatures import options_of


class CommandParser(ExactParser, ArgumentParser):
    """jsonargparse's parser, with one-line mistakes."""


def call(
    function: Callable[..., int], args: list[str], late: Mapping[str, Callable[[], Any]] | None = None, **given: Any
) -> int:
    """Parse the arguments of a subcommand by its function's signature and docstring, and call it.

    late: types of options that need torch, each imported only where the option is used. given: arguments that the
    subcommand has parsed itself.
    """
    name = args[0]
    tree = OptionTree()
    tree.commands[name] = options_of(function, tree, {}).options | {option: Option() for option in late or ()}
    CommandLine(tree, name).read(args[1:])
    used = {o: kind for o, kind in (late or {}).items() if any(word.startswith(f"--{o}") for word in args)}
    parser = CommandParser(prog=f"lit-posttrain {name}", description=(function.__doc__ or "").split("\n\n")[0])
    parser.add_function_arguments(function, as_positional=False, skip=set(used))
    for option, kind in used.items():
        parser.add_argument(f"--{option}", type=kind(), default=None)
    parsed = parser.parse_args(args[1:])
    return function(**parser.instantiate(parsed).as_dict() | given)
