"""Where a value was written, as errors name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_posttrain.cli.parsing.config_file import ConfigFile, Keys


@dataclass(frozen=True)
class Place:
    """Where a value was written: on the command line (`typed`), or in a file."""

    typed: str
    file: ConfigFile | None = None
    keys: Keys = ()

    def at(self, key: str | int) -> Place:
        """The place of a member."""
        return Place(self.typed, self.file, (*self.keys, key))

    @property
    def said(self) -> str:
        """The beginning of an error: `--model.beta`, or `mine.yaml:12: beta`."""
        names = [str(key) for key in self.keys if isinstance(key, str)]
        if self.file is None:
            return f"{self.typed} ({'.'.join(names)})" if names else self.typed
        keys = self.keys
        while keys not in self.file.lines:
            keys = keys[:-1]
        return f"{self.file.path}:{self.file.lines[keys]}{f': {names[-1]}' if names else ''}"

    def texts(self, value: Any) -> Any:
        """A value with its source texts, where YAML has read a truth value or a number: `no`, `1e3`, `0123`."""
        if isinstance(value, list):
            return [self.at(number).texts(item) for number, item in enumerate(value)]
        if self.file is not None and isinstance(value, (bool, int, float)):
            return self.file.texts.get(self.keys, value)
        return value

    @property
    def dotted(self) -> str:
        """The name of the option on the command line."""
        inside = [key for key in self.keys if isinstance(key, str)]
        return ".".join(word for word in [self.typed.removeprefix("--"), *inside] if word not in ("", "init_args"))

    def with_name(self, wrong: str, right: str) -> str:
        """The name `right` in place of `wrong`, as it is written here: in full on the command line."""
        if self.file is not None or self.keys:
            return right
        return "--" + ".".join(right if word == wrong else word for word in self.typed.removeprefix("--").split("."))
