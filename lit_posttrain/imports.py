"""Classes and functions that are named by where they are imported from, such as my_losses.Margin."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from lit_posttrain.errors import PostTrainError, alternatives

_NOT_OWN = (f"{Path(__file__).parent}/", f"{Path(importlib.__file__).parent.parent}/")  # this package, Python itself


def imported(path: str) -> Any:
    """The object that `path` (module.name) stands for.

    Raises:
        PostTrainError: for a module that is not there or fails when it is imported, for a name that is not in it, and
            for what is no such path.
    """
    if "/" in path or path.endswith(".py"):
        module = path.removesuffix(".py").strip("./").replace("/", ".")
        raise PostTrainError(f"{path}: the name of a file; name what is in it, such as {module}.NAME")
    if ":" in path:
        raise PostTrainError(f"{path}: write a dot in place of the colon: {path.replace(':', '.')}")
    first, *names = path.split(".")
    way = first
    found: Any = _module(first, path)
    if found is None:
        beside = [module.name for module in pkgutil.iter_modules([os.getcwd()])]
        hint = _meant(first, beside, "this folder has")
        raise PostTrainError(f"{path}: no module `{first}` in {os.getcwd()}, on PYTHONPATH or installed{hint}")
    for name in names:
        way = f"{way}.{name}"
        if not hasattr(found, name) and (not isinstance(found, ModuleType) or _module(way, path) is None):
            raise PostTrainError(f"{path}: {_called(found)} has no `{name}`{_meant(name, _names(found))}")
        found = getattr(found, name)
    return found


def place_of(defined: Any) -> str:
    """`file:line` of a class or a function."""
    return f"{_short(inspect.getsourcefile(defined) or '?')}:{inspect.getsourcelines(defined)[1]}"


def _module(name: str, path: str) -> ModuleType | None:
    """None where there is no such module."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as problem:  # whatever its code does
        if isinstance(problem, ModuleNotFoundError) and problem.name == name:
            return None
        raise PostTrainError(f"{path}: importing {name} fails at {raised_at(problem)}: {said_by(problem)}") from problem


def said_by(problem: BaseException) -> str:
    """An exception in a line: its class, and its message where it has one."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}".removesuffix(": ")


def raised_at(problem: BaseException) -> str:
    """`file:line` of the code that failed: where there is any, outside of installed packages."""
    if place := own_place(problem):
        return place
    last = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{_short(last.filename)}:{last.lineno}"


def own_place(problem: BaseException, within: str = "") -> str:
    """`file:line` of the last code that is in no installed package, this one included; empty where there is none.
    within: the folder of a package that has called it."""
    if isinstance(problem, SyntaxError) and os.path.isfile(problem.filename or ""):  # not of text that the code read
        return f"{_short(problem.filename or '?')}:{problem.lineno}"
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if not f.filename.startswith("<frozen")]
    while within and frames and not frames[0].filename.startswith(within):
        frames = frames[1:]
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(_NOT_OWN)]
    return f"{_short(own[-1].filename)}:{own[-1].lineno}" if own else ""


def _called(found: Any) -> str:
    if not isinstance(found, ModuleType):
        return f"`{getattr(found, '__name__', found)}`"
    file = getattr(found, "__file__", None)
    return f"module `{found.__name__}`" + (f" ({_short(file)})" if file else "")


def _names(found: Any) -> list[str]:
    """What may have been meant: what is defined there, and the modules of a package."""
    home = getattr(found, "__name__", "")
    own = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == home]
    modules = [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]
    return [*own, *getattr(found, "__all__", []), *modules]


def _meant(name: str, known: Iterable[str], holder: str = "it has") -> str:
    names = [one for one in known if not one.startswith("_")]
    return f"; {alternatives(name, names, holder)}" if names else ""


def _short(file: str) -> str:
    """A path as people would write it here."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
