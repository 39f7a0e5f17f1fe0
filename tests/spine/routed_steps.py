"""Two steps of a mixture of experts on several processes, one of which writes down the weights.

Every rank runs it (MODEL STRATEGY DEVICES OUT).
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from cases import conversations
from helpers.runs import quiet_trainer
from lightning.pytorch import LightningDataModule
from torch.distributed.tensor import DTensor

from lit_posttrain import SFT, ModelSpec
from lit_posttrain.core.optimisation import Optim
from lit_posttrain.data.store.loader import StepLoader
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.models.sharding import FSDP2Strategy


class Steps(LightningDataModule):
    """Two optimizer steps of random conversations."""

    def train_dataloader(self) -> StepLoader:
        trainer: Any = self.trainer
        ranks = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        return StepLoader(
            MemoryTrees(conversations(48)),
            batch_size=24,
            accumulate=trainer.accumulate_grad_batches,
            world=ranks["num_replicas"],
            rank=ranks["rank"],
            layout=trainer.lightning_module.layout,
        )


SGD = Optim(lr=0.5, optimizer="SGD", schedule="constant", warmup_ratio=0.0)


def two_steps(folder: str, weight: float, **options: Any) -> dict[str, torch.Tensor]:
    """Weights after two steps, and as `load` the shares of the experts in the second."""
    spec = ModelSpec(folder, router_aux_loss=weight)
    module = SFT(spec, SGD)
    quiet_trainer(max_steps=2, **options).fit(module, datamodule=Steps())
    found = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        for name, value in module.named_parameters()
    }
    return found if module.balance.load is None else {**found, "load": module.balance.load}


def main() -> None:
    torch.set_num_threads(1)
    model, strategy, devices, out = sys.argv[1:]
    kind = FSDP2Strategy() if strategy == "fsdp2" else strategy
    found = two_steps(model, 0.1, strategy=kind, devices=int(devices))
    torch.save(found, f"{out}.{torch.distributed.get_rank()}")


if __name__ == "__main__":
    main()
