"""Greedy generation, and whole weights, in the validation of an FSDP2 run.

Every rank runs it (MODEL OUT).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from helpers.runs import quiet_trainer
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from lit_posttrain import SFT, ModelSpec, Sampling
from lit_posttrain.models.sharding import FSDP2Strategy
from lit_posttrain.rollout.weights import dense_weights

# the ranks have unequal numbers of prompts, of batches and of tokens to generate
PROMPTS = [[[5, 6, 7], [8, 9], [10, 11, 12, 13], [40, 41, 42]], [[20, 21, 22, 23, 24]]]
LIMITS = [12, 5]


class Probe(SFT):
    """Generates at the start of validation, on every rank."""

    drawn: list[list[int]]
    whole: dict[str, torch.Tensor]

    def on_validation_start(self) -> None:
        rank = self.trainer.global_rank
        answers = self.engine(batch_size=2).generate(PROMPTS[rank], 1, Sampling(LIMITS[rank], temperature=0.0))
        self.drawn = [a[0].tokens for a in answers]
        self.whole = dict(dense_weights(self.language_model))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        pass


def main() -> None:
    torch.set_num_threads(1)
    module = Probe(ModelSpec(sys.argv[1]))
    trainer = quiet_trainer(
        devices=2,
        strategy=FSDP2Strategy(),
    )
    trainer.validate(module, DataLoader(TensorDataset(torch.arange(2))), verbose=False)
    Path(f"{sys.argv[2]}-{trainer.global_rank}.json").write_text(json.dumps(module.drawn))
    save_file(module.whole, f"{sys.argv[2]}-{trainer.global_rank}.safetensors")


if __name__ == "__main__":
    main()
