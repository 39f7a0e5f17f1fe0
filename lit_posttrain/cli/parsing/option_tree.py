"""The options of every command, and of the classes that can be chosen for it.

`cli/options.py` makes the tree from the signatures of the classes, which takes seconds of imports. So it is kept in a
file too, and a mistyped name is found before torch is loaded. The file cannot be out of date: its folder is named by
the versions and source files that it was made from.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lit_posttrain import __version__
from lit_posttrain.models.paths import cache_root
from lit_posttrain.runs.atomic import write_text

_KEPT = 4  # of other installations, or of source files as they were
_MADE_WITH = ("torch", "lightning", "jsonargparse", "transformers")
_LIBRARIES = ("lit_posttrain", "lightning", "torch")  # whose classes have a short name that is their own


@dataclass(frozen=True)
class Option:
    """One option.

    hint: the type of its values, as Python writes it ("float | None"); "" for types beyond texts, numbers, lists and
    mappings. group: the dataclass whose options are below it. family: the kind of class that it takes, whose options
    are below it. many: True if it takes a list of such classes. required: True if it has no default.
    """

    hint: str = ""
    group: str = ""
    family: str = ""
    many: bool = False
    required: bool = False


@dataclass
class Kind:
    """The options of a class. more: True if it takes other names too, as `**kwargs` do."""

    options: dict[str, Option]
    more: bool = False


@dataclass
class OptionTree:
    """All options.

    commands: the options of the first level, by command. kinds: the options of a class, by import path. families: by
    kind of class, the import paths by short name, which two classes may share.
    """

    commands: dict[str, dict[str, Option]] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    families: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def resolve(self, family: str, name: str) -> str | None:
        """The import path of a class in the tree, by its short name, its path, or of the libraries' classes any path
        that leads to it; None for others."""
        package = name.partition(".")[0]
        paths = self.families.get(family, {}).get(name.rpartition(".")[2], [])
        if of_library(name):
            found = [path for path in paths if path.startswith(f"{package}.")]
        else:
            found = [path for path in paths if "." not in name or path == name]
        return found[0] if len(found) == 1 else None


def of_library(path: str) -> bool:
    """True for an import path within this package, lightning or torch: what is kept for later commands."""
    return "." in path and path.partition(".")[0] in _LIBRARIES


def kept_tree() -> OptionTree | None:
    """The tree that an earlier command of the same installation saved; None without one."""
    try:
        read = json.loads(kept("tree") or "")
        return OptionTree(
            {command: _options(listed) for command, listed in read["commands"].items()},
            {path: Kind(_options(kind["options"]), kind["more"]) for path, kind in read["kinds"].items()},
            read["families"],
        )
    except (ValueError, KeyError, TypeError):
        return None


def keep_tree(tree: OptionTree) -> None:
    """Save the tree for later commands."""
    keep("tree", json.dumps(asdict(tree)))


def kept(name: str) -> str | None:
    """A text that an earlier command of the same installation saved; None without one."""
    try:
        return (_folder() / name).read_text(encoding="utf-8")
    except OSError:
        return None


def keep(name: str, text: str) -> None:
    """Save a text for later commands, if the cache can be written."""
    folder = _folder()
    if (folder / name).exists():
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.parent.iterdir(), key=lambda place: place.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        write_text(folder / name, text)


def _options(listed: dict[str, dict[str, str | bool]]) -> dict[str, Option]:
    return {name: Option(**option) for name, option in listed.items()}  # type: ignore[arg-type]  # as asdict wrote them


def _folder() -> Path:
    home = Path(__file__).parents[2]
    made_of = [__version__, platform.python_version(), str(home)]
    for library in _MADE_WITH:
        with suppress(PackageNotFoundError):
            made_of.append(f"{library} {version(library)}")
    for folder in (home, home / "callbacks"):  # which is a link in a checkout
        for file in sorted(folder.rglob("*.py")):
            about = file.stat()
            made_of.append(f"{file} {about.st_size} {about.st_mtime_ns}")
    return cache_root() / "options" / hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
