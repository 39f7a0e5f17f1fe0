"""The subcommands of `lit-posttrain` that are not the Trainer's: each file is one, with `run(args) -> exit status`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import SUPPRESS, ArgumentParser

from lit_posttrain.cli.parsing.option_tree import Option, OptionTree
from lit_posttrain.cli.parsing.parser import ExactParser
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.cli.parsing.signatures import options_of
from lit_posttrain.cli.parsing.values import guarded, plain
from lit_posttrain.errors import PostTrainError


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
    read = CommandLine(tree, name).read(args[1:])
    used = {o: kind for o, kind in (late or {}).items() if any(word.startswith(f"--{o}") for word in args)}
    about = (function.__doc__ or "").split("\n\n")[0]
    parser = CommandParser(prog=f"lit-posttrain {name}", description=about, print_config=None)
    parser.add_function_arguments(function, as_positional=False, skip=set(used))
    for option, kind in used.items():
        parser.add_argument(f"--{option}", type=kind(), default=None)
    parser.add_argument("--config", action="config", help=SUPPRESS)  # as which the reader hands on what it has read
    values = plain(parser.instantiate(guarded(plain(parser.parse_args(read)))).as_dict()) | given
    del values["config"]
    try:
        return function(**values)
    except PostTrainError as problem:
        raise PostTrainError(_by_its_options(str(problem), set(values))) from problem


def _by_its_options(told: str, options: set[str]) -> str:
    """A message with remedies that name options of training, by the options of a command that has others."""
    for name, instead in _REMEDIES.items():
        told = told.replace(name, instead)
    own = "|".join(sorted(options, key=len, reverse=True))
    return re.sub(rf"--(?:model\.policy|data)\.({own})\b", r"--\1", told)


_REMEDIES = {
    "name one with --model.policy.chat_template FILE": "take a model whose tokenizer has one",
    "name a corrected template with --model.policy.chat_template FILE": "correct the one in the model's folder",
    "name one with --model.policy.tokenizer": "put its files there",
    "name another model with --model.policy.path": "name another model",
}
