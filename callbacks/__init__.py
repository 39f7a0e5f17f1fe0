"""Callbacks that every method shares; imported as `lit_posttrain.callbacks`."""

from __future__ import annotations

from lit_posttrain.callbacks.best_checkpoint import BestCheckpoint
from lit_posttrain.callbacks.checkpoint import LastCheckpoint, run_checkpoints
from lit_posttrain.callbacks.checkpoint_io import AtomicCheckpointIO
from lit_posttrain.callbacks.evaluation import EvaluationReport
from lit_posttrain.callbacks.finite import FiniteLossGuard
from lit_posttrain.callbacks.interrupt import GracefulInterrupt
from lit_posttrain.callbacks.kl_control import KLControl
from lit_posttrain.callbacks.predictions import PredictionWriter
from lit_posttrain.callbacks.progress import StepProgressBar
from lit_posttrain.callbacks.reference_sync import ReferenceSync
from lit_posttrain.callbacks.reward_hacking import RewardHackingWatch
from lit_posttrain.callbacks.reward_logging import RewardLogger
from lit_posttrain.callbacks.run_plan import RunPlan
from lit_posttrain.callbacks.samples import SampleLogger
from lit_posttrain.callbacks.throughput import Throughput

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "EvaluationReport",
    "FiniteLossGuard",
    "GracefulInterrupt",
    "KLControl",
    "LastCheckpoint",
    "PredictionWriter",
    "ReferenceSync",
    "RewardHackingWatch",
    "RewardLogger",
    "RunPlan",
    "SampleLogger",
    "StepProgressBar",
    "Throughput",
    "run_checkpoints",
]
