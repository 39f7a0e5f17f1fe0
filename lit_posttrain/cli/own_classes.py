"""Classes from outside the package, named by their import path: their options, or an error that says what they lack."""

from __future__ import annotations

import inspect
from typing import Any

from lit_posttrain.cli.families import unfinished
from lit_posttrain.cli.parsing.option_tree import Kind, OptionTree
from lit_posttrain.cli.parsing.signatures import Families, add_kind, import_path
from lit_posttrain.cli.parsing.spelling import a
from lit_posttrain.core.resume import arguments_of
from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import imported, place_of
from lit_posttrain.overrides import check_overrides

_OVERRIDES = ("method", "data module", "callback", "reward")  # kinds of class that are written for this package


def own_class(tree: OptionTree, families: Families, family: str, path: str) -> Kind:
    """Add a class to the tree, and return its options.

    Raises:
        PostTrainError: if it does not exist, is no class of the family, lacks an abstract method, or its constructor
            lacks a type that its base class has, or for a method names one that is not known; see `check_overrides`.
    """
    found = imported(path)
    base = families[family]
    if not isinstance(found, type):
        kind_of = "function" if inspect.isroutine(found) else type(found).__name__
        raise PostTrainError(f"{path} is {a(kind_of)}, and {a(family)} is a class{_as_function(found, family, path)}")
    if not issubclass(found, base):
        other = next((name for name, one in families.items() if issubclass(found, one)), None)
        wanted = f"{a(family)} is wanted, which inherits from {_named(base)}"
        raise PostTrainError(f"{path} ({place_of(found)}) is {a(other or 'class of another kind')}; {wanted}")
    if missing := unfinished(found):
        raise PostTrainError(f"{path} ({place_of(found)}) lacks {' and '.join(missing)}, which {a(family)} must define")
    _require_types(found)
    if family in _OVERRIDES:
        check_overrides(found)
    if family == "method":
        arguments_of(found)
    return add_kind(tree, found, families)


def _require_types(kind: type) -> None:
    """Refuse arguments without the type that a base class gives them: the parser reads every option by its type."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():  # type: ignore[misc]  # its signature is what counts
        handed_on = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if handed_on or parameter.annotation is not parameter.empty:
            continue
        for parent in kind.__mro__[1:]:
            above = inspect.signature(parent.__init__).parameters.get(name)  # type: ignore[misc]  # as above
            if above is not None and above.annotation is not above.empty:
                hint = inspect.formatannotation(above.annotation).strip("'")
                raise PostTrainError(
                    f"{import_path(kind)} ({place_of(kind)}): `{name}` of __init__ has no type; write {name}: {hint}"
                )


def _as_function(found: Any, family: str, path: str) -> str:
    if family == "reward" and callable(found):
        return f"; pass --model.rewards+=FunctionReward --model.rewards.function {path}"
    return ""


def _named(base: type | tuple[type, ...]) -> str:
    return " or ".join(import_path(one) for one in (base if isinstance(base, tuple) else (base,)))
