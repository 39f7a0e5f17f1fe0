"""Prints what `validate`, `test` and `predict` measure before they start, and the metrics at the end."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_posttrain.callbacks.plan_lines import number_of
from lit_posttrain.callbacks.protocols import CountsEvaluatedRows


class EvaluationReport(Callback):
    """Prints model and data sets, and after a validation or test a table of the metrics. Silent while training."""

    def __init__(self, model: str) -> None:
        """
        Args:
            model: The model and the checkpoint that are measured, in words.
        """
        self.model = model

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is measured."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._announce(trainer, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_start`."""
        self._announce(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_start`."""
        self._announce(trainer, "predict")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the figures."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._figures(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_end`."""
        self._figures(trainer)

    def _announce(self, trainer: Trainer, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        lines = [f"{'model':<10} {self.model}"]
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, CountsEvaluatedRows):
            rows = data.evaluated_rows(stage).items()
            lines += [f"{'data':<10} {number_of(count, 'example', 'examples')}: {name}" for name, count in rows]
        print("\n".join([*lines, f"{'precision':<10} {trainer.precision}"]), flush=True)

    def _figures(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            metrics = sorted((name, float(value)) for name, value in trainer.callback_metrics.items())
            width = max((len(name) for name, _ in metrics), default=0)
            print("\n".join(["", *(f"{name:<{width}}  {value:.5g}" for name, value in metrics)]), flush=True)
