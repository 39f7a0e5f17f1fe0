"""One run of this project's DPO for benchmarks/dpo.py: prints a JSON line of figures. Not meant to be run by itself."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from sft_ours import Clock
from sides import now, peak_mb

from lit_posttrain import DPO, LoRASpec, ModelSpec, PreferenceData
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.runtime import quiet_libraries
from lit_posttrain.types import RowLayout


class Unshared(DPO):
    """Every response with a copy of its prompt, as without trees."""

    @property
    def layout(self) -> RowLayout:
        return replace(super().layout, shared=False)


class Began(pl.Callback):
    """When training began, behind the caching pass."""

    def __init__(self) -> None:
        self.at = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.at = now()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--precision", default="bf16-mixed", help="of the arithmetic")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--unshared", action="store_true")
    parser.add_argument("--loss", default="sigmoid")
    parser.add_argument("--lora", type=int, help="rank of adapters")
    parser.add_argument("--nf4", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    cuda = torch.cuda.is_available()
    clock, began = Clock(), Began()
    kind: Any = Unshared if options.unshared else DPO
    module = kind(
        ModelSpec(
            options.model,
            dtype=options.dtype,
            lora=LoRASpec(r=options.lora) if options.lora else None,
            quantization="nf4" if options.nf4 else None,
        ),
        Optim(lr=1e-6, warmup_ratio=0.0),
        loss=options.loss,
        reference="cached" if options.cached else "auto",
    )
    data = PreferenceData(
        options.data, batch_size=options.batch, eval_batch_size=options.batch, shuffle=False, cache_dir=options.cache
    )
    trainer = pl.Trainer(
        max_steps=options.steps,
        precision=options.precision,
        gradient_clip_val=1.0,
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[clock, began],
    )
    start = now()
    trainer.fit(module, datamodule=data)
    step = statistics.median(b - a for a, b in itertools.pairwise(clock.times))
    figures = {
        "rows_per_s": options.batch / step,
        "median_step_s": step,
        "before_s": began.at - start,
        "peak_mb": peak_mb(),
        "losses": clock.losses,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
