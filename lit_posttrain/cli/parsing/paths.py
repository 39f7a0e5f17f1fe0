"""Which options take files and folders, by their names; and `~/` in their values."""

from __future__ import annotations

import os
import re
from typing import Any

_NAMES = re.compile(r"(^|_)(path|paths|file|files|dir|dirpath|tokenizer|prompts|start|runs)$|_template$")


def takes_paths(option: str) -> bool:
    """True if an option takes a path. A list of `prompts` has the prompts themselves, see `each_takes_paths`."""
    return bool(_NAMES.search(option))


def each_takes_paths(option: str) -> bool:
    """True if the members of an option's list are paths."""
    return takes_paths(option) and option != "prompts"


def at_home(value: Any) -> Any:
    """A path, or a list of them, with `~/` replaced by the home folder."""
    if isinstance(value, list):
        return [at_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value
