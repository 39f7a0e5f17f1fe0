"""Finds mistakes in a command before torch is loaded, which takes seconds: names, files and folders.

The command itself would find the same later, with the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lit_posttrain.cli.arguments import resolve_arguments
from lit_posttrain.cli.parsing.option_tree import kept_tree
from lit_posttrain.cli.parsing.reader import CommandLine
from lit_posttrain.cli.parsing.values import plain
from lit_posttrain.core.trainer_numbers import NUMBERS, check_numbers
from lit_posttrain.data.files.sources import local_sources
from lit_posttrain.errors import PostTrainError, alike_on_all_ranks
from lit_posttrain.models.paths import find_checkpoint, located


def check_run(args: Sequence[str]) -> None:
    """Check the arguments of a trainer command or of `audit`.

    Raises:
        PostTrainError: for a config, run, checkpoint, option, data file or model folder that is not there, and for a
            value of the wrong type; for numbers of the Trainer with which nothing would be trained.
    """
    command = args[0]
    given = resolve_arguments(list(args))[1:]
    tree = kept_tree()
    if tree is None:  # the first command of an installation leaves it
        return
    line = CommandLine(tree, command)
    line.read(given)
    if any(word.startswith("--print_config") or ".help" in word for word in given):
        return
    if command == "fit":
        trainer = {name.removeprefix("trainer."): given for name, given in line.chosen.root.given.items()}
        with alike_on_all_ranks():
            check_numbers({name: number_of(trainer[name][1]) for name in NUMBERS if name in trainer})
    for data in line.chosen.root.below.get("data", []):
        for name in ("path", "val_path", "test_path"):
            _, paths = data.given.get(name, (None, None))
            paths = plain(paths)
            check_data([paths] if isinstance(paths, str) else paths or [])
    for method in line.chosen.root.below.get("model", []):
        _, path = method.given.get("policy.path", (None, None))
        if isinstance(path, str):
            located(plain(path))


def number_of(value: Any) -> float | None:
    """An option's value as a number, as the parser will read it; None for anything else, such as null."""
    for kind in (int, float):
        with suppress(ValueError, TypeError):
            return None if isinstance(value, bool) else kind(value)
    return None


def check_data(paths: Sequence[str]) -> None:
    """Refuse files and folders of rows that are not there; those of the hub are not asked for.

    Raises:
        PostTrainError: as `find_sources`.
    """
    for path in paths:
        local_sources(path)


def check_model(path: str) -> None:
    """Refuse a model, run or checkpoint that is not there; the hub is not asked.

    Raises:
        PostTrainError: as what loads it.
    """
    found = find_checkpoint(path)
    if found is None:
        located(path)
    elif not found.exists():
        raise PostTrainError(f"{found}: no such checkpoint")
