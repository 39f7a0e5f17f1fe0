"""A class that was chosen on a command line or in its configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lit_posttrain.cli.parsing.option_tree import Kind
from lit_posttrain.cli.parsing.place import Place

OUR_CLASSES = ("method", "data module")  # every run has one of each, and its config chooses them


@dataclass
class Chosen:
    """A class that was chosen for an option; or the command itself, at the root.

    name: its short name. family: the kind of class. kind: its options; None for a class from outside the package, whose
    options are not known yet. place: where it was chosen. given: by dotted name of an option, the place and the value
    that it was given. below: by dotted name of an option, the classes that were chosen for it.
    """

    name: str
    family: str
    kind: Kind | None
    place: Place
    given: dict[str, tuple[Place, Any]] = field(default_factory=dict)
    below: dict[str, list[Chosen]] = field(default_factory=dict)
