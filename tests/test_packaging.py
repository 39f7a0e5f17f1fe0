"""A wheel holds every package: an editable install would not notice that one is missing."""

from __future__ import annotations

import tomllib
from pathlib import Path

HOME = Path(__file__).parent.parent


def test_every_package_is_named() -> None:
    named = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {file.parent for file in (HOME / "lit_posttrain").rglob("*.py")}
    found |= {HOME / "lit_posttrain" / name for name in ("builtin", "callbacks", "configs")}  # data, and links
    assert sorted(named) == sorted(str(folder.relative_to(HOME)).replace("/", ".") for folder in found)
