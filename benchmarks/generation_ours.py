"""One run of our sampling for benchmarks/generation.py: prints a JSON line of figures. Not to be run by itself."""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import lightning.pytorch as pl
from generation import Prompts, figures, options_of_a_side, questions
from sides import now

from lit_posttrain import SFT, ConversationData, LoRASpec, ModelSpec, Sampling
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.runtime import quiet_libraries


class Samples(pl.Callback):
    """Samples once as a run that has begun to train does."""

    def __init__(self, prompts: Prompts, options: argparse.Namespace) -> None:
        self.prompts, self.options, self.found = prompts, options, dict[str, Any]()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        engine = pl_module.engine(len(self.prompts) * self.options.group)
        engine.generate(self.prompts, self.options.group, Sampling(2))
        begun = now()
        groups = engine.generate(self.prompts, self.options.group, Sampling(self.options.tokens))
        self.found = figures([answer.tokens for group in groups for answer in group], now() - begun)


def sample(prompts: Prompts, options: argparse.Namespace) -> dict[str, Any]:
    lora = LoRASpec(r=options.lora) if options.lora else None
    samples = Samples(prompts, options)
    trainer = pl.Trainer(
        max_steps=1,
        precision=options.precision,
        devices=1,
        callbacks=[samples],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with tempfile.TemporaryDirectory() as cache:
        data = ConversationData("builtin:demo_sft", val_fraction=0, batch_size=1, cache_dir=cache)
        optim = Optim(lr=1e-3, weight_decay=0.01, schedule="constant", warmup_ratio=0.0)
        trainer.fit(SFT(ModelSpec(options.model, lora=lora), optim), datamodule=data)
    return samples.found


if __name__ == "__main__":
    chosen = options_of_a_side()
    quiet_libraries()
    print(json.dumps(sample(questions(chosen), chosen)))
