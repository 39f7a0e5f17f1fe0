"""What decides the figures that a benchmark leaves in a file: so that it goes on from its own alone."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

_NO_DIFFERENCE = ("other", "out", "only", "peer", "plot", "runs", "work", "profile")


def content(file: str) -> str:
    """A file by its folder's name, its own and its content's hash, wherever it lies."""
    path = Path(file)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return f"{path.resolve().parent.name}/{path.name} {digest}"


def settings(options: argparse.Namespace, spared: Collection[str] = ()) -> dict[str, Any]:
    """The options that make a difference, without those spared, files by their content."""
    kept = {name: value for name, value in vars(options).items() if name not in (*_NO_DIFFERENCE, *spared)}
    kept["data"] = content(options.data) if options.data else None
    if "mix" in kept:
        kept["mix"] = [content(file) for file in options.mix]
    return kept


def same_experiment(file: Path, options: argparse.Namespace, spared: Collection[str] = ()) -> None:
    """Refuse figures that another experiment has left, one with another value of an option that is not spared."""
    if file.exists():
        refuse_other(file, json.loads(file.read_text())["options"], options, spared)


def refuse_other(file: Path, before: dict[str, Any], options: argparse.Namespace, spared: Collection[str] = ()) -> None:
    """The same, of settings that were read already."""
    differs = [name for name, now in settings(options, spared).items() if before.get(name) != now]
    if differs:
        raise SystemExit(f"{file} was made with another --{differs[0]}; choose another --out")
