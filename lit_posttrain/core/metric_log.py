"""A method's metrics: sums and counts that are reduced over ranks once per log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from lit_posttrain.core.metrics import Sums, WeightedMeans, weighted_means
from lit_posttrain.errors import PostTrainError

Derived = Callable[[Mapping[str, float]], dict[str, float]]


class MetricLog(nn.Module):
    """The metrics of the steps since the last log, and of every file of the evaluation under way.

    file: place of the file under evaluation among all, from 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.evaluation = WeightedMeans(), WeightedMeans()
        self.file = 0

    def add(self, name: str, total: Tensor, count: Tensor | float, evaluating: bool) -> None:
        """Add to a metric of the step at hand, or of the file under evaluation."""
        if evaluating:
            self.evaluation.update(f"{self.file}:{name}", total, count)
        else:
            self.steps.update(name, total, count)

    def take_steps(self) -> dict[str, float]:
        """Reduce the metrics of the steps since the last log, and begin anew. Collective."""
        values = weighted_means(self.steps.compute())
        self.steps.reset()
        return values

    def take_evaluation(self) -> tuple[list[tuple[int, dict[str, float]]], dict[str, float]]:
        """Reduce the metrics of the evaluation, by file and of all together, and begin anew. Collective."""
        sums = self.evaluation.compute()
        self.evaluation.reset()
        files: dict[int, Sums] = {}
        overall: Sums = {}
        for key, (total, count) in sums.items():
            file, _, name = key.partition(":")
            files.setdefault(int(file), {})[name] = (total, count)
            before = overall.get(name, (0.0, 0.0))
            overall[name] = (before[0] + total, before[1] + count)
        return [(file, weighted_means(part)) for file, part in files.items()], weighted_means(overall)


def require_metric(name: Any, total: Any, count: Any) -> None:
    """Check a metric as a method tracks it.

    Raises:
        PostTrainError: for a name that is no text, a total that is no scalar tensor and a count that is no number.
    """
    if not isinstance(name, str):
        raise PostTrainError(f"track: the name of a metric is {name!r:.40}; it must be a text, such as 'entropy'")
    for value, called in ((total, "total"), (count, "count")):
        number = isinstance(value, Real) and called == "count"
        if not number and (not isinstance(value, Tensor) or value.dim()):
            has = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise PostTrainError(
                f"track: the {called} of {name} has the {has}; pass the sum of its values as a scalar tensor, and how "
                f"many there are: track('{name}', values.sum(), values.numel())"
            )


def log_values(module: pl.LightningModule, stage: str, values: Mapping[str, float], bar: Sequence[str]) -> None:
    """Log reduced values as `stage/name`; names that begin with _ are only what derived metrics are made of."""
    shown = {f"{stage}/{name}": value for name, value in values.items() if not name.startswith("_")}
    shows = {f"{stage}/{name}" for name in bar}
    trainer, training = module.trainer, stage == "train"
    if training:
        # at once: Lightning would repeat the last value of whatever this step has not measured
        for logger in trainer.loggers:
            logger.log_metrics({**shown, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
    if trainer.interrupted:  # a step is saved after an error, when Lightning lets nothing be logged
        return
    for name, value in shown.items():
        module.log(name, value, prog_bar=name in shows, logger=not training, batch_size=1, rank_zero_only=False)


def log_evaluation(module: pl.LightningModule, stage: str, metrics: MetricLog, derived: Derived) -> None:
    """Log the metrics of every file, where there are several, and of all together."""
    files, overall = metrics.take_evaluation()
    names: list[str] | None = getattr(getattr(module.trainer, "datamodule", None), f"{stage}_names", None)
    for file, values in files if len(files) > 1 else []:
        label = names[file] if names else f"file_{file}"
        log_values(module, f"{stage}/{label}", values | derived(values), bar=())
    log_values(module, stage, overall | derived(overall), bar=("loss",))
