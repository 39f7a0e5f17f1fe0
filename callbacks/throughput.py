"""Speed, padding, memory and utilisation, logged as perf/..."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_posttrain.callbacks.clock import TrainingClock
from lit_posttrain.callbacks.flops import TrainingFlops, measured_peak, training_flops
from lit_posttrain.errors import PostTrainError
from lit_posttrain.ops.precision import sum_dtype
from lit_posttrain.trainer_state import ends_step, logs_step

_peak_of = cache(measured_peak)  # a further run in the same process does not measure again
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


class Throughput(Callback):
    """Speed, padding, memory and utilisation.

    Logged with the other metrics of a step, over the steps since the last log.
    perf/tokens_per_s: real tokens that all processes computed by the time from one optimizer step to the next, data
    loading and checkpoints included, validation not. perf/padding_share: padding by all positions computed.
    perf/peak_memory_gb: of this process so far; on CPU its resident memory. perf/mfu: what training needs (see
    callbacks/flops.py) by what the devices could have done in that time.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        """
        Args:
            peak_tflops: What one device can do in the run's precision, in TFLOP/s, for perf/mfu. Default: measured
                at the start with a matrix product, in 0.3 s.
        """
        if peak_tflops is not None and peak_tflops <= 0:
            raise PostTrainError(f"peak_tflops is {peak_tflops}; it must be above 0, or null to have it measured")
        self.peak_tflops = peak_tflops
        self._flops = TrainingFlops(0.0, 0.0, 0.0)
        self._peak = 0.0  # FLOP/s of all devices
        self._clock = TrainingClock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the operations of the model and measure the device's peak."""
        self._flops = training_flops(pl_module, getattr(pl_module, "model_config", None))
        device = trainer.strategy.root_device
        dtype = _DTYPES.get(str(trainer.precision).split("-")[0], torch.float32)
        one = self.peak_tflops * 1e12 if self.peak_tflops is not None else _peak_of(device, dtype)
        self._peak = one * trainer.world_size
        self._begin(device)

    def _begin(self, device: torch.device) -> None:
        self._clock.restart()
        # of this process: tokens, pairs of positions that attend to each other; all positions, targets
        self._sums = torch.zeros(2, dtype=sum_dtype(device), device=device)
        self._positions = self._targets = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._clock.pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again."""
        self._clock.go_on()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count tokens on the device; reduce and log at the end of a logged step."""
        real = batch.tree_ids >= 0
        seen = ((batch.position_ids + 1) * real).sum()  # a token attends to its branch and trunk up to itself
        self._sums += torch.stack([real.sum(), seen])
        self._positions, self._targets = self._positions + real.numel(), self._targets + len(batch.target_ids)
        if ends_step(trainer, batch_idx) and logs_step(trainer):
            for name, value in self._values(trainer).items():
                pl_module.log(f"perf/{name}", value, batch_size=1)
            self._begin(trainer.strategy.root_device)

    def _values(self, trainer: Trainer) -> dict[str, float]:
        own = torch.cat([self._sums, self._sums.new_tensor([self._positions, self._targets])])
        sums: Tensor = trainer.strategy.reduce(own, reduce_op="sum")
        tokens, pairs, positions, targets = sums.tolist()  # waits for the device, so the clock is right after it
        seconds = self._clock.seconds
        needed = self._flops.of(tokens, targets, pairs)
        return {
            "tokens_per_s": tokens / seconds,
            "padding_share": 1 - tokens / positions,
            "peak_memory_gb": peak_memory(trainer.strategy.root_device) / 1e9,
            "mfu": needed / (seconds * self._peak),
        }


def peak_memory(device: torch.device) -> float:
    """Most bytes this process has used so far: allocated on its GPU, else resident."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
