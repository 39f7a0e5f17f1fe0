"""The one exception that people are meant to read: what was found, where, and what to do, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Problem = TypeVar("Problem", bound=BaseException)


class PostTrainError(Exception):
    """A mistake in the input or the setup. The command line prints its message without a traceback and exits with 2.

    The message is one line: what was found, where (`file:line` if there is one), and the remedy.
    """


def on_all_ranks(problem: Problem) -> Problem:
    """`problem`, from now on known as one that all ranks raise at the same place, so that they can still save."""
    loosely: Any = problem
    loosely.on_all_ranks = True
    return problem


@contextmanager
def alike_on_all_ranks() -> Iterator[None]:
    """Marks the errors of a block that looks at options and data alone: every rank raises them. Also a decorator."""
    try:
        yield
    except PostTrainError as problem:
        on_all_ranks(problem)
        raise


def is_on_all_ranks(problem: BaseException) -> bool:
    """True if all ranks raise it at the same place, as far as is known."""
    return getattr(problem, "on_all_ranks", False)


def first_line(problem: BaseException) -> str:
    """What an exception says, in one line: its first, and the next where that one only leads to it."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    text = lines[0] if lines else type(problem).__name__
    for line in lines[1:]:
        if not text.endswith(":"):
            break
        text += f" {line}"
    return f"{text} is not known" if isinstance(problem, KeyError) else text


class InvalidTemplate(PostTrainError):
    """A chat template that is not valid Jinja, whatever it is given."""


def alternatives(name: str, known: Sequence[str], many: str) -> str:
    """What to say of a name that is not known: the close ones, else all of them; `many` is what they are called."""
    close = difflib.get_close_matches(name, known, n=2)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"{many}: {', '.join(sorted(known)[:12]) or 'none'}"
