"""Makes the page of `lit-posttrain fit --help` (lit_posttrain/cli/help.py prints it).

It lists the options that a command is checked against, with the help from the docstrings. jsonargparse's own page lacks
those of the method and of the data module, which depend on the class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from textwrap import TextWrapper, wrap
from types import MappingProxyType
from typing import Any

import docstring_parser
import lightning.pytorch as pl

from lit_posttrain.cli.options import AuditOptions, RunOptions, load_class, option_tree
from lit_posttrain.cli.parsing.chosen_classes import ChosenClasses
from lit_posttrain.cli.parsing.option_tree import Option, OptionTree
from lit_posttrain.cli.parsing.paths import takes_paths
from lit_posttrain.cli.parsing.place import Place
from lit_posttrain.cli.parsing.signatures import import_path, options_of
from lit_posttrain.cli.parsing.values import choices_of, describe
from lit_posttrain.cli.training import TRAINER_DEFAULTS
from lit_posttrain.imports import imported
from lit_posttrain.runtime import quiet_libraries

_WIDTH, _INDENT = 100, 24
_OPENING = """usage: lit-posttrain {command} --config CONFIG [OPTIONS]

Ready-made configs, and how to begin:
  --config CONFIG       configs/sft.yaml, with overlays such as a second --config configs/with/lora.yaml;
                        `lit-posttrain configs` lists them. Options given after it win.
"""
_RESUME = (
    "  --resume NAME         Go on with the run of this name (or folder) from its last.ckpt, exactly; auto: begin\n"
    "                        the run of --name, or go on with it if it has begun (for jobs that are requeued).\n"
)
_RUN_HELP = {
    "print_config": "Print the config that results, as YAML, and stop.",
    "seed_everything": "Seed of everything that is drawn. Default: 0.",
    "ckpt_path": "Checkpoint to go on from, or to measure: a file, a run's folder, best or last.",
    "weights_only": "Leave this out: checkpoints are read without running code in them in any case.",
    "verbose": "Leave this out: the figures are printed in any case.",
    "return_predictions": "Leave this out: predictions are written into the run's folder.",
}
_METAVARS = {"int": "INT", "float": "NUMBER", "str": "TEXT", "list": "LIST", "tuple": "LIST", "dict": "MAPPING"}
_METAVARS["bool"] = "{true,false}"


def made(command: str, classes: dict[str, str]) -> str:
    """The page of a command, with the options of the classes that are chosen: `model` and `data`."""
    quiet_libraries()
    tree, page = option_tree(), _Page()
    page.lines = [_OPENING.format(command=command) + (_RESUME if command == "fit" else "")]
    if command == "audit":
        page.group(tree, "The audit", AuditOptions, "")
    families = {"model": "method", "data": "data module"}
    chosen_classes = ChosenClasses(tree, command, partial(load_class, tree))
    for name, chosen in classes.items():
        chosen_classes.class_of(
            tree.commands[command][name], chosen, Place(f"--{name}")
        )  # or it says what is wrong with it
        kind = imported(tree.resolve(families[name], chosen) or chosen)
        page.group(tree, f"--{name} {kind.__name__}: {_Docs(kind).about}", kind, f"{name}.")
    for name, family in families.items():
        ours = sorted(n for n, paths in tree.families[family].items() if paths[0].startswith("lit_posttrain"))
        choice = f"{', '.join(ours)}, or one of yours by its import path (a.b.Name)"
        page.lines += ["", *wrap(f"--{name} NAME chooses another {family}: {choice}", _WIDTH, break_on_hyphens=False)]
    page.group(tree, "The run", RunOptions, "")
    of = "fit" if command == "audit" else command  # it takes the options of `fit`
    skipped = pl.cli.LightningCLI.subcommands()[of]
    of_trainer = [name for name in options_of(getattr(pl.Trainer, of), tree, {}).options if name not in skipped]
    for name in ("print_config", "seed_everything", *of_trainer):
        page.option(name, tree.commands[of][name], None, _RUN_HELP[name])
    for name, title in {"wandb": "", "throughput": "", "trainer": "Lightning's trainer"}.items():
        page.group(tree, title, imported(tree.commands[of][name].group), f"{name}.", TRAINER_DEFAULTS)
    return "\n".join(page.lines)


class _Page:
    """Lines of help."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def group(
        self, tree: OptionTree, title: str, kind: type, prefix: str, defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """The options of a class, below `prefix`, and then those of its dataclasses. defaults: those that differ from
        the constructor's."""
        docs, options = _Docs(kind), tree.kinds[import_path(kind)].options
        defaults = {**docs.defaults, **defaults}
        self.lines.append(f"\n{(title or docs.about).rstrip('.: ')}:")
        for name, option in options.items():
            if not option.group or option.hint:
                self.option(f"{prefix}{name}", option, defaults.get(name), docs.help.get(name, ""))
        for name, option in options.items():
            if option.group:
                inner = imported(option.group)
                given = vars(defaults[name]) if isinstance(defaults.get(name), inner) else {}
                self.group(tree, f"--{prefix}{name}: {_Docs(inner).about}", inner, f"{prefix}{name}.", given)

    def option(self, name: str, option: Option, default: Any, text: str) -> None:
        """An option, what it takes, and its help."""
        head = f"  --{name}" if name == "print_config" else f"  --{name} {_metavar(name, option)}"
        text = " ".join(text.split())
        if option.required and not option.group:
            text += " (required)"
        if type(default) in (int, float, str, bool, list) and default not in ("", []) and "Default:" not in text:
            text += f" (default: {describe(default) if type(default) is bool else default})"
        if len(head) + 2 > _INDENT:
            self.lines.append(head)
            head = ""
        wrapper = TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
        wrapper.initial_indent, wrapper.subsequent_indent = head.ljust(_INDENT), " " * _INDENT
        self.lines += wrapper.wrap(text) or ([head] if head else [])


class _Docs:
    """Help and defaults of a class's options, from its constructor and docstrings and those of its bases.

    about: the first sentence. help, defaults: by option.
    """

    def __init__(self, kind: type) -> None:
        self.about = _parsed(kind).short_description or ""
        self.help: dict[str, str] = {}
        self.defaults: dict[str, Any] = {}
        for one in kind.__mro__[:-1]:
            for documented in (one, one.__init__):  # type: ignore[misc]  # whatever its signature is
                for parameter in _parsed(documented).params:
                    self.help.setdefault(parameter.arg_name, parameter.description or "")
            for name, given in inspect.signature(one.__init__).parameters.items():  # type: ignore[misc]  # as above
                if given.default is not given.empty:
                    self.defaults.setdefault(name, given.default)


def _parsed(documented: type | Callable[..., Any]) -> docstring_parser.Docstring:
    text = inspect.cleandoc(documented.__doc__ or "")
    # the parser wants a sentence before the arguments, which a constructor's docstring need not have
    return docstring_parser.parse(f"Options.\n\n{text}" if text.startswith("Args:") else text)


def _metavar(name: str, option: Option) -> str:
    """What an option takes, in a word."""
    if choices := choices_of(option):
        return f"{{{','.join([*choices, *(['true', 'false'] if 'bool' in option.hint else [])])}}}"
    if option.group or option.family:
        return "OPTIONS" if option.group else "[NAME, ...]" if option.many else "NAME"
    kinds = [_METAVARS.get(part.partition("[")[0], "") for part in option.hint.split(" | ")]
    word = "|".join(dict.fromkeys(filter(None, kinds))) or "VALUE"
    return word.replace("TEXT", "PATH") if takes_paths(name.rpartition(".")[2]) else word
