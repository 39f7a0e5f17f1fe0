"""What is wrong with a single record."""

from __future__ import annotations


class BadRow(Exception):
    """A record that cannot be used. reason: a few words to count it under. The message says what was found and the
    remedy, without the place, which the caller knows."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Misread(BadRow):
    """A record that shows that its file means something else than it is read as. It always ends the run: skipping such
    records would keep those that happen to look right."""


class NothingToLearn(BadRow):
    """A record from which there is nothing to learn by what it says itself, such as a pair of equal responses: always
    counted and listed, never an error."""
