"""The loggers of a run: metrics.csv in its folder, and Weights & Biases if it can be had."""

from __future__ import annotations

from lit_posttrain.loggers.metrics_csv import MetricsCSV
from lit_posttrain.loggers.weights_and_biases import WandbOptions, keep_run_id, wandb_logger

__all__ = ["MetricsCSV", "WandbOptions", "keep_run_id", "wandb_logger"]
