"""What is wrong with a single record."""

from __future__ import annotations


class BadRow(Exception):
    """A record that cannot be used. reason: a few words to count it under. The message says what was found and what to
    do; the caller adds the place."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Misread(BadRow):
    """A record that shows that the whole file was recognised wrongly. Always ends the run: skipping such records would
    keep those that happen to look right."""


class NothingToLearn(BadRow):
    """A record without a training signal, such as a pair of equal responses: always counted and listed, never an
    error."""
