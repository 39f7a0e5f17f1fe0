"""Names of metrics that callbacks monitor: a misspelt one is refused after the first logged step, where it would
otherwise show at the end of an epoch only."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_posttrain.errors import PostTrainError


def refuse_misspelt(trainer: Trainer, pl_module: LightningModule, best: str) -> bool:
    """Compare the monitored names with the metrics of the last logged step, which a validation logs too. Not where
    classes from outside the package and Lightning log metrics, and not for metrics that callbacks log later, such as
    kl/sampled. best: the value of --monitor.

    Returns:
        True if there was a step to compare with.

    Raises:
        PostTrainError: for a name that is close to a known one, or that no validation logs.
    """
    trained = {*trainer.callback_metrics, "step", "epoch"}
    if not any(name.startswith("train/") for name in trained):
        return False
    loosely: Any = trainer  # `callbacks` is set by a connector, unseen by type checkers
    homes = {type(part).__module__.partition(".")[0] for part in (pl_module, *loosely.callbacks)}
    if not homes - {"lit_posttrain", "lightning"}:
        validated = {f"val/{name.removeprefix('train/')}" for name in trained if name.startswith("train/")}
        _refuse("--monitor", best, validated)
        for option, metric in monitored(trainer):
            _refuse(option, metric, validated | trained)
    return True


def monitored(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """(option, metric) of every callback of Lightning's that monitors one."""
    loosely: Any = trainer
    for callback in loosely.callbacks:
        if isinstance(callback, (EarlyStopping, ModelCheckpoint)) and callback.monitor is not None:
            yield f"--trainer.callbacks {type(callback).__name__}.monitor", callback.monitor


def _refuse(option: str, metric: str, known: set[str]) -> None:
    alike = [name for name in known if name.count("/") == metric.count("/")]
    close = difflib.get_close_matches(metric, alike, n=1, cutoff=0.85)
    complete = metric.startswith(("train/", "perf/")) or "/" not in metric
    if metric not in known and (close or complete):
        choice = f"did you mean {close[0]}?" if close else f"choose one such as {', '.join(sorted(known)[:3])}"
        raise PostTrainError(f"{option} {metric}: not a metric of the validation; {choice}")
