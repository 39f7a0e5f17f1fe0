"""Options that were typed before a --config that replaces them: the parser lets the last one hold, without a word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_posttrain.cli.parsing.chosen import Chosen
from lit_posttrain.cli.parsing.option_tree import Kind
from lit_posttrain.cli.parsing.place import Place
from lit_posttrain.cli.parsing.spelling import in_words
from lit_posttrain.cli.parsing.values import same_value
from lit_posttrain.errors import PostTrainError

Way = tuple[str | int, ...]  # to an option: names, and the positions of classes among those chosen for one option


@dataclass(frozen=True)
class _Given:
    """Where an option was given, its value, and the classes that it chose, if it takes any: name, and options if
    known."""

    place: Place
    value: Any
    classes: list[tuple[str, Kind | None]]


Snapshot = dict[Way, _Given]


def given_so_far(root: Chosen) -> Snapshot:
    """All options that were given, by the way that leads to them."""
    return dict(_given(root, ()))


def refuse_replaced(before: Snapshot, after: Snapshot, config: str) -> None:
    """Check what a config has changed.

    Raises:
        PostTrainError: if an option that was typed before it no longer has its value, or went with its class.
    """
    lost = [(way, one) for way, one in before.items() if one.place.file is None and not _kept(way, one, after)]
    if not lost:
        return
    way, _ = lost[0]
    ways = (way[:end] for end in range(len(way), 0, -1))
    found = next(after[one] for one in ways if one in after and after[one].place.file is not None)
    names = in_words(list(dict.fromkeys(one.place.typed for _, one in lost)))
    raise PostTrainError(
        f"{found.place.said} replaces {names}, given before it; put --config {config} before the options that are to "
        "hold"
    )


def _given(owner: Chosen, way: Way) -> Iterator[tuple[Way, _Given]]:
    for dotted, (place, value) in owner.given.items():
        classes = [(chosen.name, chosen.kind) for chosen in owner.below.get(dotted, [])]
        if dotted:  # the options of a class that is not known have no name here
            yield (*way, *dotted.split(".")), _Given(place, value, classes)
    for dotted, listed in owner.below.items():
        for number, chosen in enumerate(listed):
            yield from _given(chosen, (*way, *dotted.split("."), number))


def _kept(way: Way, typed: _Given, after: Snapshot) -> bool:
    above = [after[way[:end]] for end in range(1, len(way)) if way[:end] in after]
    if any(kind is None for one in above for _, kind in one.classes):
        return True  # it may take this option too
    if way not in after or any(one.value is None for one in above):
        return False
    now = after[way]
    if now.place is typed.place or (now.place.keys and str(now.place.keys[-1]).endswith("+")):
        return True
    if typed.classes or now.classes:
        return typed.classes == now.classes
    both_groups = isinstance(typed.value, dict) and isinstance(now.value, dict)  # whose members are looked at
    return both_groups or same_value(typed.value, now.value)
