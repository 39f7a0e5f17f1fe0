"""The table has all that the installed Lightning ships, and nothing else; docs/lightning.md shows it."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import lightning.fabric.plugins.environments as environments
import lightning.pytorch as pl
import pytest
from helpers.trainer import ROOT
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import accelerators, callbacks, loggers, plugins, profilers, strategies
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.tuner.tuning import Tuner

from lit_posttrain.core import supported
from lit_posttrain.core.supported import Support
from lit_posttrain.core.supported_options import OPTIONS


def classes(package: ModuleType, *bases: type) -> set[str]:
    """All public classes below these bases in any module of a package, exported or not."""
    modules = [
        package,
        *(import_module(m.name) for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")),
    ]
    found = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    inside = [kind for kind in found if issubclass(kind, bases) and kind.__module__.startswith("lightning")]
    removed = "lightning.pytorch._graveyard"  # names of earlier versions, which say so when they are used
    public = {kind.__name__ for kind in inside if not kind.__name__.startswith("_") and removed not in kind.__module__}
    return public | set(getattr(package, "__all__", ()))  # some are no subclasses while their own package is missing


def precisions() -> set[str]:
    annotation = inspect.signature(pl.Trainer).parameters["precision"].annotation

    def values(kind: Any) -> Iterable[str]:
        for part in typing.get_args(kind):
            yield from [str(part)] if isinstance(part, (str, int)) else values(part)

    return set(values(typing.get_type_hints(pl.Trainer.__init__)["precision"] or annotation))


SHIPPED: dict[str, tuple[Mapping[str, Support], set[str]]] = {
    "callbacks": (supported.CALLBACKS, classes(callbacks, callbacks.Callback)),
    "profilers": (supported.PROFILERS, classes(profilers, profilers.Profiler)),
    "loggers": (supported.LOGGERS, classes(loggers, loggers.Logger)),
    "strategies": (
        supported.STRATEGIES,
        classes(strategies, strategies.Strategy)
        | set(strategies.StrategyRegistry.available_strategies())
        | {"auto", "FSDP2Strategy"},
    ),
    "precisions": (supported.PRECISIONS, precisions()),
    "accelerators": (
        supported.ACCELERATORS,
        set(accelerators.AcceleratorRegistry.available_accelerators()) | {"auto", "gpu"},
    ),
    "plugins": (
        supported.PLUGINS,
        classes(plugins, Precision, CheckpointIO, LayerSync) | (classes(environments, ClusterEnvironment)),
    ),
    "options": (OPTIONS, set(inspect.signature(pl.Trainer).parameters)),
    "tuner": (supported.TUNER, {name for name in vars(Tuner) if not name.startswith("_")}),
}


OF_SOME_VERSIONS = {"LitLogger", "NeptuneLogger"}  # of Lightning 2.6


@pytest.mark.parametrize("kind", SHIPPED)
def test_everything_that_lightning_ships_is_decided(kind: str) -> None:
    table, shipped = SHIPPED[kind]
    assert set(table) - OF_SOME_VERSIONS == shipped - OF_SOME_VERSIONS
    assert shipped <= set(table)


def test_the_page_is_the_table() -> None:
    spec = importlib.util.spec_from_file_location("lightning_table", ROOT / "tools/lightning_table.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text() == tool.page(), "run python tools/lightning_table.py"
