"""Short names of data sets, used in the names of their metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def short_names(paths: Sequence[str], taken: set[str]) -> dict[str, str]:
    """The paths by a unique short name each: the file's stem, with its folder or a number if that is taken."""
    named: dict[str, str] = {}
    for path in paths:
        place = Path(re.sub(r"^builtin:|:[^/:]*$", "", path))
        stem = place.name.split(".")[0] or "data"
        candidates = [stem, f"{place.parent.name}_{stem}", *(f"{stem}_{n}" for n in range(2, len(paths) + 3))]
        name = next(c for c in candidates if c not in taken and c not in named and not c.startswith("_"))
        named[name] = path
    return named
