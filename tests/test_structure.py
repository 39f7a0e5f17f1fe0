"""What the structure of the package promises: short chains and files, no repeated constructors, no import circles."""

from __future__ import annotations

import inspect
import statistics
from dataclasses import fields, is_dataclass
from graphlib import TopologicalSorter
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import grimp
import pytest

from lit_posttrain.cli import options
from lit_posttrain.core.module import PostTrainingModule

METHODS = sorted(
    (kind for kind in vars(options).values() if isinstance(kind, type) and issubclass(kind, PostTrainingModule)),
    key=lambda kind: kind.__name__,
)
METHODS = [kind for kind in METHODS if kind is not PostTrainingModule]
FILES = {kind: Path(inspect.getfile(kind)).read_text(encoding="utf-8").splitlines() for kind in METHODS}


def test_every_method_is_looked_at() -> None:
    folder = Path(inspect.getfile(METHODS[0])).parent
    assert {Path(inspect.getfile(kind)).name for kind in METHODS} == {
        file.name for file in folder.glob("*.py") if file.name != "__init__.py"
    }


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_at_most_three_classes_of_the_project_stand_above_a_method(kind: type) -> None:
    above = [one for one in kind.__mro__[1:] if one.__module__.startswith("lit_posttrain.")]
    assert len(above) <= 3, [one.__name__ for one in above]


def test_method_files_are_short() -> None:
    sizes = {kind.__name__: len(lines) for kind, lines in FILES.items()}
    assert statistics.median(sizes.values()) <= 100, sizes
    assert max(sizes.values()) <= 250, sizes


def constructor(kind: type[object]) -> list[str]:
    return [line.strip() for line in inspect.getsource(kind.__init__).splitlines()]


def longest_shared(one: list[str], other: list[str]) -> int:
    """The longest run of lines that both have, one after another."""
    best, before = 0, [0] * (len(other) + 1)
    for line in one:
        row = [0]
        for place, theirs in enumerate(other):
            row.append(before[place] + 1 if line == theirs else 0)
        best, before = max(best, *row), row
    return best


def test_no_two_constructors_share_six_lines() -> None:
    own = {kind: constructor(kind) for kind in METHODS if "__init__" in vars(kind)}
    shared = {(a.__name__, b.__name__): longest_shared(own[a], own[b]) for a, b in combinations(own, 2)}
    assert max(shared.values()) < 6, {pair: run for pair, run in shared.items() if run >= 6}


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_no_default_can_be_changed(kind: type) -> None:
    for parameter in inspect.signature(kind).parameters.values():
        assert not isinstance(parameter.default, (list, dict, set)), parameter.name
        assert _frozen(parameter.default), f"{parameter.name}: a changed default would change every later module's"


def _frozen(value: Any) -> bool:
    if not is_dataclass(value) or isinstance(value, type):
        return True
    params = type(value).__dataclass_params__  # type: ignore[attr-defined]  # which dataclasses have
    return bool(params.frozen) and all(_frozen(getattr(value, one.name)) for one in fields(value))


def test_no_modules_import_in_circles() -> None:
    graph = grimp.build_graph("lit_posttrain", exclude_type_checking_imports=True)
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()


@pytest.mark.parametrize(
    ("home", "name"),
    [
        ("lit_posttrain.core.model_module", "ModelModule.token_logprobs"),
        ("lit_posttrain.core.module", "PostTrainingModule.check_data"),
        ("lit_posttrain.core.module", "PostTrainingModule.loss_terms"),
        ("lit_posttrain.core.model_module", "ModelModule.tokenizer"),
    ],
)
def test_the_main_operators_are_typed(home: str, name: str) -> None:
    found: Any = import_module(home)
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    function = getattr(found, "func", getattr(found, "fget", found))
    assert "Any" not in str(inspect.signature(function)), inspect.signature(function)
