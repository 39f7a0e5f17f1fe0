"""Three steps with a cached reference (METHOD MODEL FOLDER STRATEGY DEVICES): every rank runs it.
Writes FOLDER/weights-DEVICES.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from cases import comparison_files, feedback_files
from helpers.runs import quiet_trainer
from torch.distributed.tensor import DTensor

from lit_posttrain import DPO, KTO, ModelSpec
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.models.sharding import FSDP2Strategy


def train(method: str, model: str, folder: Path, strategy: str, devices: int) -> None:
    """The weights after three steps of SGD, which forgives no error of the gradient."""

    sgd = Optim(lr=0.3, optimizer="SGD", schedule="constant", warmup_ratio=0.0)
    torch.manual_seed(0)
    kind, files = {"dpo": (DPO, comparison_files), "kto": (KTO, feedback_files)}[method]
    spec = ModelSpec(model, dtype="float64")
    module = kind(spec, sgd, beta=0.5, reference="cached")
    trainer = quiet_trainer(
        devices=devices,
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        max_steps=3,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=files(folder))
    weights = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for name, p in module.named_parameters()
    }
    if trainer.is_global_zero:
        torch.save(weights, folder / f"weights-{devices}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
