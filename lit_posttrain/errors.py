"""The one exception that people are meant to read: what was found, where, and what to do, in one line."""

from __future__ import annotations

from typing import NoReturn


class PostTrainError(Exception):
    """A mistake in the input or the setup. The command line prints its message without a traceback and exits with 2.

    The message is one line: what was found, where (`file:line` if there is one), and the remedy.
    """


class OneLineErrors:
    """Mixin for argument parsers: a mistake is one line, without the whole usage above it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as a PostTrainError."""
        raise PostTrainError(" ".join(str(message).split())) from ex
