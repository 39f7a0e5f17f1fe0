"""Makes the page of `lit-posttrain fit --help` (lit_posttrain/cli/help.py prints it).

jsonargparse's own help leaves the last two out, since other classes have other options, and begins with pages of usage.
"""

from __future__ import annotations

import re
from contextlib import redirect_stdout, suppress
from dataclasses import is_dataclass
from importlib import import_module
from io import StringIO
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser

from lit_posttrain.cli import options, training
from lit_posttrain.runtime import quiet_libraries

_OPENING = """usage: lit-posttrain {command} --config CONFIG [OPTIONS]

Ready-made configs, and how to begin:
  --config CONFIG       configs/sft.yaml, with overlays such as a second --config configs/with/lora.yaml;
                        `lit-posttrain configs` lists them. Options given after it win.
"""
# to a page that is part of this one; those to pages of other classes take a name
_POINTER = re.compile(r"^  --[\w.]+[.]help(?: {2,}.*)?\n(?: {8,}.*\n?)*", re.MULTILINE)
_RESUME = (
    "  --resume NAME         Go on with the run of this name (or folder) from its last.ckpt, exactly; auto: begin\n"
    "                        the run of --name, or go on with it if it has begun (for jobs that are requeued).\n"
)
# how a section of Lightning's help begins, and what it holds
_TITLES = {
    "options:": "The run:",
    "Options of `audit`": "The audit:",
    "Customize every aspect": "Lightning's trainer:",
    "Base class of all methods": "Another method:",
    "A DataModule standardizes": "Another data module:",
    "Runs the full optimization": "Checkpoints:",
    "Perform one evaluation epoch": "Checkpoints:",
    "Run inference on your data": "Checkpoints:",
}


def made(command: str, classes: dict[str, str]) -> str:
    """The page of a command, with the options of the classes that are chosen: `model` and `data`."""
    quiet_libraries()
    opening = _OPENING.format(command=command) + (_RESUME if command == "fit" else "")
    of = "fit" if command == "audit" else command  # it takes the options of `fit`
    parts = [opening]
    if command == "audit":
        own = ArgumentParser(add_help=False)
        own.add_class_arguments(options.AuditOptions)
        parts.append(_sections(own.format_help()))
    for name, chosen in classes.items():
        parts.append(_sections(_page(of, [f"--{name}.help", chosen])))
        parts += _grouped(name, _class(chosen))
    return "\n".join([*parts, _sections(_page(of, ["--help"]))])


def _class(name: str) -> Any:
    """A class by its short name or its import path; None for one that is not there, which the parser speaks of."""
    home, _, last = name.rpartition(".")
    with suppress(ImportError):
        return getattr(import_module(home) if home else options, last, None)
    return None


def _grouped(prefix: str, of: Any) -> list[str]:
    """The options of the dataclasses among a class's arguments that may be left out, such as LoRASpec: jsonargparse
    shows them as one value."""
    found = []
    for name, hint in get_type_hints(of.__init__).items() if of is not None else ():
        for kind in (hint, *get_args(hint)):
            if is_dataclass(kind):
                key = f"{prefix}.{name}"
                if kind is not hint:
                    parser = ArgumentParser(add_help=False)
                    parser.add_class_arguments(kind, key)
                    found.append(_sections(parser.format_help()))
                found += _grouped(key, kind)
    return found


def _page(command: str, options: list[str]) -> str:
    page = StringIO()
    with redirect_stdout(page), suppress(SystemExit):
        training.PostTrainCLI(args=[command, *options])
    return page.getvalue()


def _sections(page: str) -> str:
    """What a parser prints, without its usage lines and with titles that say what follows."""
    kept = []
    for section in re.split(r"\n\n+", page.strip()):
        title, _, body = section.partition("\n")
        body = _POINTER.sub("", body)
        if body.startswith("  -"):  # options, not usage or prose
            known = next((ours for theirs, ours in _TITLES.items() if title.startswith(theirs)), title)
            kept.append(f"{known}\n{body}\n")
    return "\n".join(kept)
