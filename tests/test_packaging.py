"""A wheel holds every package and what lies in it: an editable install would not notice that something is missing."""

from __future__ import annotations

import tomllib
from pathlib import Path

HOME = Path(__file__).parent.parent


def test_every_package_is_named() -> None:
    named = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {file.parent for file in (HOME / "lit_posttrain").rglob("*.py")}
    found |= {HOME / "lit_posttrain" / name for name in ("builtin", "callbacks", "configs")}  # data, and links
    assert sorted(named) == sorted(str(folder.relative_to(HOME)).replace("/", ".") for folder in found)


def test_every_file_that_is_no_python_is_named() -> None:
    named = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    data = {
        file
        for package, patterns in named.items()
        for pattern in patterns
        for file in (HOME / package.replace(".", "/")).glob(pattern)
    }
    found = {file for file in (HOME / "lit_posttrain").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert {file for file in found if file.suffix != ".py"} - data == set()
