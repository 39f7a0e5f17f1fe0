"""The one exception that people are meant to read: what was found, where, and what to do, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn


class PostTrainError(Exception):
    """A mistake in the input or the setup. The command line prints its message without a traceback and exits with 2.

    The message is one line: what was found, where (`file:line` if there is one), and the remedy.
    """


class UsageError(PostTrainError):
    """What an argument parser found wrong, in its own words; `explained` makes one line of it.

    known: names of options, to suggest one for a mistyped name.
    """

    def __init__(self, message: str, known: Sequence[str]) -> None:
        super().__init__(message)
        self.known = known


class OneLineErrors:
    """Mixin for argument parsers: a mistake is raised, instead of printed below the whole usage. Half an option's name
    is a mistake too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UsageError. Parsers of nested options raise it too, and the outer one adds where it was."""
        raise UsageError(str(message), self.option_names()) from ex

    def option_names(self) -> list[str]:
        """Names to suggest for a mistyped one."""
        return []


def explained(message: str, known: Sequence[str] = ()) -> str:
    """A parser's message as one line that names the option. jsonargparse lists every type that a value is not.

    known: option names, of which a close one is suggested.
    """
    text = " ".join(message.split())
    keys = re.findall(r'[Pp]arser key "([^"]+)"', text)
    nested = re.findall(r"NestedArg\(key='([^']+)'", text)
    option = "--" + ".".join([*keys[:1], *(max(nested, key=len).split(".") if nested else keys[1:])])
    refused = re.search(r"Option '([^']+)' is not accepted", text) or re.search(r"unrecognized arguments: (\S+)", text)
    if refused:
        option = refused[1].split("=")[0] if refused[1].startswith("-") else option
        parts = option.lstrip("-").split(".")
        wrong = parts[-1] if parts[0] in known else parts[0]
        close = difflib.get_close_matches(wrong, [k for k in known if k != wrong], n=1)
        hint = f"did you mean {option.replace(wrong, close[0])}?" if close else "--help lists the options"
        return f"{option}: no such option; {hint}"
    expected = re.search(r"Expected an? (.+?)\.? Got value: (\S+)", text)
    if expected and keys:
        kind = re.sub(r"<class '([\w.]+)'>", r"\1", expected[1])
        return f"{option}: expected {kind}, got {expected[2]}"
    return text
