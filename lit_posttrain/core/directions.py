"""Which of a metric's values are good: min if its lowest one is the best, max if its highest one is.

A class of methods declares directions in `better`, by metric or by pattern, without stage and file, and has those of
its parents; other metrics have none.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

Direction = Literal["min", "max"]


def direction_of(method: type, metric: str) -> Direction | None:
    """The direction of a metric, such as val/reward or val/FILE/loss; None for one without."""
    name = metric.partition("/")[2]
    names = (name, name.partition("/")[2])  # the second one without its file
    declared = known_directions(method).items()
    return next((best for pattern, best in declared if any(fnmatchcase(n, pattern) for n in names)), None)


def known_directions(method: type) -> dict[str, Direction]:
    """`better` of a class and of all that it inherits from; its own come first."""
    found: dict[str, Direction] = {}
    for kind in method.__mro__:
        found |= {name: best for name, best in vars(kind).get("better", {}).items() if name not in found}
    return found
