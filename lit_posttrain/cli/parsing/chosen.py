"""A class that was chosen on a command line or in its configs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lit_posttrain.cli.parsing.option_tree import Kind
from lit_posttrain.cli.parsing.place import Place

OUR_CLASSES = ("method", "data module")  # every run has one of each, and its config chooses them


@dataclass
class Chosen:
    """A class that was chosen for an option, or the whole run.

    name: as people call it. family: what kind of class it is. kind: its options; None for a class of one's own, whose
    options nobody knows yet. place: where it was chosen. given: by the dotted name of an option, where it was given and
    its value. below: likewise the classes that were chosen for it; of a list all of them.
    """

    name: str
    family: str
    kind: Kind | None
    place: Place
    given: dict[str, tuple[Place, Any]] = field(default_factory=dict)
    below: dict[str, list[Chosen]] = field(default_factory=dict)
