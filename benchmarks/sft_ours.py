"""One run of this project's SFT for benchmarks/sft.py: prints a JSON line of figures. Not meant to be run by itself."""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import lightning.pytorch as pl
import torch
from sides import WEIGHTS, now, peak_mb

from lit_posttrain import SFT, ConversationData, ModelSpec
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.runtime import quiet_libraries


class Clock(pl.Callback):
    """When optimizer steps ended, their tokens and losses."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.times.append(now())
        self.tokens.append(batch.denominators["input_tokens"])
        self.losses.append(round(float(outputs["loss"]), 4))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    clock = Clock()
    spec = ModelSpec(options.model, dtype=WEIGHTS[options.precision])
    module = SFT(spec, Optim(lr=1e-6, weight_decay=0.01, warmup_ratio=0.0))
    trainer = pl.Trainer(
        max_steps=options.steps,
        precision=options.precision,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[clock],
    )
    data = ConversationData(options.data, batch_size=options.batch, max_length=1024)
    if options.profile:
        with torch.profiler.profile() as profile:
            trainer.fit(module, datamodule=data)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=44))
        return
    trainer.fit(module, datamodule=data)
    steps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    figures = {
        "tokens_per_s": sum(clock.tokens[1:]) / sum(steps),
        "median_step_s": statistics.median(steps),
        "peak_mb": peak_mb(),
        "losses": clock.losses,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
