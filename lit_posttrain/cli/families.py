"""The imported classes of a kind, such as rewards, that an option can choose."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from lit_posttrain.cli.parsing.option_tree import OptionTree
from lit_posttrain.cli.parsing.signatures import Families, add_kind, import_path


def add_family(tree: OptionTree, families: Families, family: str) -> None:
    """Add the classes of a family and their options to the tree."""
    base = families[family]
    known = tree.families.setdefault(family, {})
    for kind in _below(base if isinstance(base, tuple) else (base,)):
        paths = known.setdefault(kind.__name__, [])
        if import_path(kind) not in paths:
            paths.append(import_path(kind))
        add_kind(tree, kind, families)


def unfinished(kind: type) -> list[str]:
    """The abstract methods that a class lacks. Python itself refuses to make one only if its metaclass is ABCMeta."""
    return [name for name in dir(kind) if getattr(getattr(kind, name, None), "__isabstractmethod__", False)]


def _below(bases: tuple[type, ...]) -> Iterator[type]:
    """The subclasses of `bases` that can be chosen: not abstract, not private, and found at their import path, unlike
    classes within a function, or of an earlier run of a notebook's cell."""
    seen: set[type] = set()
    waiting = list(bases)
    while waiting:
        kind = waiting.pop()
        waiting += set(type.__subclasses__(kind)) - seen
        seen.add(kind)
        if kind not in bases and not unfinished(kind) and not kind.__name__.startswith("_") and _is_there(kind):
            yield kind


def _is_there(kind: type) -> bool:
    found: object = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind
