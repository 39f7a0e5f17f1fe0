"""Methods that a class from outside the package overrides: mistakes that would show after hours, or never."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from lit_posttrain.errors import PostTrainError
from lit_posttrain.imports import place_of

_LIBRARIES = ("lit_posttrain", "lightning", "torch", "abc", "builtins", "typing")


def check_overrides(kind: type) -> None:
    """Look at what a method, a callback or a reward defines itself.

    Raises:
        PostTrainError: for a method that does not take what it is called with, a hook with a misspelt name, and a
            training_step of a method that replaces the one here.
    """
    if not any(_library(one) for one in kind.__mro__[:-1]):
        return
    for own in kind.__mro__:
        for name, defined in vars(own).items() if not _library(own) else ():
            if not inspect.isfunction(defined) or name.startswith("_"):
                continue
            above = _inherited(kind, name)
            if above is None:
                _check_name(kind, own, name, defined)
            elif inspect.isfunction(above):
                _check_arguments(own, name, defined, above)
                _check_step(own, name, defined, above)


def _check_arguments(own: type, name: str, defined: Any, above: Any) -> None:
    wanted = inspect.signature(above).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in wanted):
        return
    needed = [p for p in wanted if p.default is p.empty]
    places = [p.name for p in needed if p.kind is not p.KEYWORD_ONLY]
    names = [p.name for p in needed if p.kind is p.KEYWORD_ONLY]
    found = inspect.signature(defined)
    try:
        found.bind(*places, **dict.fromkeys(names))
    except TypeError:
        raise PostTrainError(
            f"{own.__name__}.{name} ({place_of(defined)}) takes ({', '.join(found.parameters)}), and is called with "
            f"({', '.join(places + names)}): let it take these"
        ) from None


def _check_step(own: type, name: str, defined: Any, above: Any) -> None:
    """The loss over a whole optimizer step, its metrics and the exact resume are in the training_step here."""
    ours = name == "training_step" and above.__module__.startswith("lit_posttrain")
    if ours and name not in inspect.unwrap(defined).__code__.co_names:
        raise PostTrainError(
            f"{own.__name__}.training_step ({place_of(defined)}) replaces the one that divides and logs the loss; "
            "define loss_terms instead, or call super().training_step(batch, batch_idx) in it"
        )


def _check_name(kind: type, own: type, name: str, defined: Any) -> None:
    hooks = [known for one in kind.__mro__ if _library(one) for known in vars(one) if known.startswith("on_")]
    close = difflib.get_close_matches(name, hooks, n=1, cutoff=0.9) if name.startswith("on_") else []
    if close:
        raise PostTrainError(
            f"{own.__name__}.{name} ({place_of(defined)}) is no hook, and nothing calls it; did you mean {close[0]}?"
        )


def _inherited(kind: type, name: str) -> Any:
    """What the library's classes have by that name."""
    return next((vars(one)[name] for one in kind.__mro__ if _library(one) and name in vars(one)), None)


def _library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES
