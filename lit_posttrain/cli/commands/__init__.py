"""The subcommands of `lit-posttrain` that are not the Trainer's: each file is one, with `run(args) -> exit status`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import SUPPRESS, ArgumentParser

from lit_posttrain.cli.families import add_family
from lit_posttrain.cli.parsing.option_tree import Kind, Option, OptionTree
from lit_posttrain.cli.parsing.parser import ExactParser
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.cli.parsing.signatures import Families, option_of, options_of
from lit_posttrain.cli.parsing.values import plain
from lit_posttrain.errors import PostTrainError


class CommandParser(ExactParser, ArgumentParser):
    """jsonargparse's parser, with errors in one line."""


@dataclass(frozen=True)
class LateType:
    """The type of an option that is imported only where the option is used. families: the kinds of classes in it."""

    annotation: Any
    families: Families = field(default_factory=dict)


def call(
    function: Callable[..., int],
    args: list[str],
    late: Mapping[str, Callable[[], LateType]] | None = None,
    **given: Any,
) -> int:
    """Parse the arguments of a subcommand by its function's signature and docstring, and call it.

    late: types of options that need torch. given: arguments that the subcommand has parsed itself.
    """
    name, late = args[0], late or {}
    used = {o: make() for o, make in late.items() if any(re.match(rf"--{o}\b", word) for word in args)}
    families = {family: base for kind in used.values() for family, base in kind.families.items()}
    tree = OptionTree()
    for family in families:
        add_family(tree, families, family)
    options = options_of(function, tree, {}).options | {option: Option() for option in late}
    options |= {option: option_of(kind.annotation, tree, families) for option, kind in used.items()}
    tree.commands[name] = options
    parser = CommandParser(
        prog=f"lit-posttrain {name}", description=(function.__doc__ or "").split("\n\n")[0], print_config=None
    )
    parser.add_function_arguments(function, as_positional=False, skip=set(used))
    for option, kind in used.items():
        parser.add_argument(f"--{option}", type=kind.annotation, default=None)
    parser.add_argument("--config", action="config", help=SUPPRESS)  # as which the reader hands on what it has read
    try:
        read = CommandLine(tree, name, lambda family, path: _own_class(tree, families, family, path)).read(args[1:])
        values = plain(parser.built(plain(parser.parse_args(read))).as_dict()) | given
        del values["config"]
        return function(**values)
    except PostTrainError as problem:
        raise PostTrainError(_by_its_options(str(problem), set(options) | set(given))) from problem


def _own_class(tree: OptionTree, families: Families, family: str, path: str) -> Kind:
    from lit_posttrain.cli.own_classes import own_class  # loads torch

    return own_class(tree, families, family, path)


def _by_its_options(told: str, options: set[str]) -> str:
    """A message whose remedies name options of `fit`, with the names of this command's options instead."""
    for name, instead in _REMEDIES.items():
        told = told.replace(name, instead)
    own = "|".join(sorted(options, key=len, reverse=True))
    return re.sub(rf"--(?:model\.policy|model|data)\.({own})\b", r"--\1", told)


_REMEDIES = {
    "name one with --model.policy.chat_template FILE": "take a model whose tokenizer has one",
    "name a corrected template with --model.policy.chat_template FILE": "correct the one in the model's folder",
    "name one with --model.policy.tokenizer": "put its files there",
    "name another model with --model.policy.path": "name another model",
}
