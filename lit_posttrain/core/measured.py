"""The measuring side of every method: metrics as sums, reduced once per log, of training and of every file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_posttrain.core.metrics import Sums, WeightedMeans, weighted_means
from lit_posttrain.core.optimisation import OptimizedModule
from lit_posttrain.core.schedules import Schedule

Direction = Literal["min", "max"]


class MeasuredModule(OptimizedModule):
    """An `OptimizedModule` whose metrics are sums and counts.

    in_bar: those of a training step that the progress bar shows. better: by metric, or by pattern, whether its lowest
    or its highest value is the best; a class declares its own, without stage and file, and has those of its parents.
    What is not there has no direction, such as an entropy.
    """

    in_bar: ClassVar[tuple[str, ...]] = ("loss",)
    better: ClassVar[Mapping[str, Direction]] = {"loss": "min", "loss/*": "min"}

    def __init__(self, optimizer: OptimizerCallable, schedule: Schedule, warmup: float) -> None:
        """The arguments are those of `OptimizedModule`."""
        super().__init__(optimizer, schedule, warmup)
        self._totals = WeightedMeans()
        self._eval_totals = WeightedMeans()
        self._file = ""  # prefix of the metrics of the file under evaluation

    def derived_metrics(self, values: Mapping[str, float]) -> dict[str, float]:
        """Metrics that are functions of reduced ones, such as a perplexity. `values` holds them unprefixed."""
        return {}

    @classmethod
    def direction_of(cls, metric: str) -> Direction | None:
        """Whether the lowest or the highest value of a metric, such as val/reward or val/FILE/loss, is the best; None
        where its method does not say."""
        name = metric.partition("/")[2]
        names = (name, name.partition("/")[2])  # the second one without its file
        declared = cls.known_directions().items()
        return next((best for pattern, best in declared if any(fnmatchcase(n, pattern) for n in names)), None)

    @classmethod
    def known_directions(cls) -> dict[str, Direction]:
        """`better` of the method and of all that it inherits from; its own come first."""
        found: dict[str, Direction] = {}
        for kind in cls.__mro__:
            found |= {name: best for name, best in vars(kind).get("better", {}).items() if name not in found}
        return found

    def track(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add to a metric: it is logged as sum(total) / sum(count) over all micro-batches and ranks since the last
        log, reduced once."""
        if self.trainer.training:
            self._totals.update(name, total, count)
        else:
            self._eval_totals.update(self._file + name, total, count)

    @property
    def evaluating(self) -> bool:
        """Whether validation or test data is under way."""
        trainer = self._attached_trainer()
        return trainer is not None and not trainer.training

    def over_ranks(self, sums: Tensor) -> Tensor:
        """The sum of a tensor over all data-parallel ranks; every rank must ask for it."""
        trainer = self._attached_trainer()
        if trainer is None:
            return sums
        total: Tensor = trainer.strategy.reduce(sums, reduce_op="sum")
        return total

    def on_validation_epoch_end(self) -> None:
        """Log each file's metrics and, for several files, their sum."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._log_evaluation("test")

    def log_training(self, more: Mapping[str, float]) -> None:
        """Reduce the metrics of the steps since the last log, and log them with some further ones."""
        values = weighted_means(self._totals.compute())
        self._totals.reset()
        self._log("train", {**values, **self.derived_metrics(values), **more}, bar=self.in_bar)

    def _attached_trainer(self) -> Any:
        try:
            return self.trainer
        except RuntimeError:
            return None

    def _log(self, stage: str, values: Mapping[str, float], bar: Sequence[str] = ()) -> None:
        # reduced over ranks already; what begins with _ is what derived metrics are made of
        shown = {f"{stage}/{name}": value for name, value in values.items() if not name.startswith("_")}
        shows = {f"{stage}/{name}" for name in bar}
        training = stage == "train"
        if training:
            # at once: Lightning would repeat the last value of whatever this step has not measured
            for logger in self.trainer.loggers:
                logger.log_metrics({**shown, "epoch": self.trainer.current_epoch}, step=self.trainer.global_step - 1)
        if self.trainer.interrupted:  # a step is saved after an error, when Lightning lets nothing be logged
            return
        for name, value in shown.items():
            self.log(name, value, prog_bar=name in shows, logger=not training, batch_size=1, rank_zero_only=False)

    def _log_evaluation(self, stage: str) -> None:
        sums = self._eval_totals.compute()
        self._eval_totals.reset()
        files: dict[str, Sums] = {}
        overall: Sums = {}
        for key, (total, count) in sums.items():
            file, _, name = key.partition(":")
            files.setdefault(file, {})[name] = (total, count)
            before = overall.get(name, (0.0, 0.0))
            overall[name] = (before[0] + total, before[1] + count)
        names = getattr(getattr(self.trainer, "datamodule", None), f"{stage}_names", None)
        for file, part in files.items():
            if len(files) > 1:
                values = weighted_means(part)
                label = names[int(file)] if names else f"file_{file}"
                self._log(f"{stage}/{label}", values | self.derived_metrics(values))
        values = weighted_means(overall)
        self._log(stage, values | self.derived_metrics(values), bar=("loss",))
