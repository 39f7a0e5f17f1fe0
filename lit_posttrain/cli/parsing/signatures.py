"""Options read from the signatures of functions and classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from lit_posttrain.cli.parsing.option_tree import Kind, Option, OptionTree, of_library

Families = Mapping[str, type | tuple[type, ...]]
# values that people type as text, by the types that signatures give them
_TYPED_AS = {bool: "bool", int: "int", float: "float", str: "str", Path: "str", NoneType: "None"}


def import_path(kind: type) -> str:
    """The import path of a class, its key in the tree."""
    return f"{kind.__module__}.{kind.__qualname__}"


def add_kind(tree: OptionTree, kind: type, families: Families) -> Kind:
    """Add a class to the tree, and the dataclasses among its options."""
    if import_path(kind) not in tree.kinds:
        tree.kinds[import_path(kind)] = Kind({})  # first, for classes that hold themselves
        known = options_of(kind.__init__, tree, families, kind)  # type: ignore[misc]  # its signature is what counts
        if known.more and not of_library(import_path(kind)):
            _add_inherited(tree, families, kind, known)
        tree.kinds[import_path(kind)] = known
    return tree.kinds[import_path(kind)]


def _add_inherited(tree: OptionTree, families: Families, kind: type, known: Kind) -> None:
    """Add the options that a constructor passes on by `**kwargs`, which the parser follows to their signatures."""
    names = ArgumentParser().add_class_arguments(kind, fail_untyped=False)
    for parent in kind.__mro__[1:]:
        inherited = options_of(parent.__init__, tree, families, parent)  # type: ignore[misc]  # as above
        for name, option in inherited.options.items():
            if name in names and name not in known.options:
                known.options[name], known.more = option, False


def options_of(function: Callable[..., Any], tree: OptionTree, families: Families, owner: type | None = None) -> Kind:
    """The options of a function's signature. families: base classes by kind of class. owner: the class, if `function`
    is a constructor."""
    hints: dict[str, Any] = {}
    with suppress(NameError, AttributeError):  # a type that is imported for type checkers alone, or misspelt
        # each field of a dataclass is resolved in the module that declares it; its constructor knows only its own
        hints = get_type_hints(owner) if owner is not None and is_dataclass(owner) else {}
    with suppress(NameError, AttributeError):
        hints |= get_type_hints(function)
    named, more = {}, False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            more = True
        elif name not in ("self", "params") and parameter.kind is not parameter.VAR_POSITIONAL:
            option = option_of(hints.get(name), tree, families)
            named[name] = replace(option, required=parameter.default is parameter.empty)
    return Kind(named, more)


def option_of(annotation: Any, tree: OptionTree, families: Families) -> Option:
    """The option with values of a type."""
    plain, group, family, many = [], "", "", False
    for part in _alternatives(annotation):
        origin = get_origin(part)
        held = get_args(part)[0] if origin in (list, Iterable) else part
        of = {_family(kind, families) for kind in _alternatives(held)}
        if len(of) == 1 and "" not in of:
            family, many = of.pop(), many or origin in (list, Iterable)
        elif is_dataclass(part) and isinstance(part, type):
            group = import_path(part)
            add_kind(tree, part, families)
        else:
            plain.append(part)
    return Option("" if plain == [Any] else _joined(plain), group, family, many)


def _family(kind: Any, families: Families) -> str:
    named = isinstance(kind, type) and get_origin(kind) is None
    return next((family for family, base in families.items() if named and issubclass(kind, base)), "")


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [a for part in get_args(annotation) for a in _alternatives(part)]
    return [annotation]


def _joined(alternatives: list[Any]) -> str:
    texts = [_text(part) for part in alternatives if getattr(part, "__name__", "") != "Tensor"]  # beside a number
    return "" if "" in texts else " | ".join(texts)


def _text(annotation: Any) -> str:
    """A type as Python writes it; "" for types beyond texts, numbers, lists and mappings."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return "Any"
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin in (list, dict, tuple):
        parts = ["..." if i is ... else _joined(_alternatives(i)) for i in inner]
        return f"{origin.__name__}[{', '.join(parts)}]" if all(parts) else ""
    return _TYPED_AS.get(annotation, "") if isinstance(annotation, type) else ""
