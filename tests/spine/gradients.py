"""The gradient of one optimizer step, however it is cut. Also a script that takes one of every method, which every
rank runs (`python gradients.py MODEL ACCUMULATE STRATEGY DEVICES FOLDER`)."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from cases import METHODS, build, prompt_files, recorded
from helpers.runs import quiet_trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_posttrain import Completion, Sampling
from lit_posttrain.data.store.loader import StepLoader
from lit_posttrain.data.store.memory import MemoryTrees
from lit_posttrain.models.sharding import FSDP2Strategy
from lit_posttrain.on_policy.module import OnPolicyModule

CLIP = 0.005
DTYPES = ("float64", "float32")


class GradientCatcher(pl.Callback):
    """Keeps the gradients as they are before the first optimizer step, and, as `clipped:NAME`, as it took them."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._keep(pl_module, "")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._keep(pl_module, "clipped:")

    def _keep(self, pl_module: Any, prefix: str) -> None:
        for name, parameter in pl_module.named_parameters():
            grad = parameter.grad
            if grad is not None:
                whole = grad.full_tensor() if isinstance(grad, DTensor) else grad
                self.gradients[prefix + name] = whole.detach().clone()


class OneStep(pl.LightningDataModule):
    """All rows as one optimizer step."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.store = MemoryTrees(METHODS[method].trees())

    def train_dataloader(self) -> StepLoader:
        trainer: Any = self.trainer
        ranks = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        return StepLoader(
            self.store,
            batch_size=len(self.store),
            accumulate=trainer.accumulate_grad_batches,
            world=ranks["num_replicas"],
            rank=ranks["rank"],
            layout=trainer.lightning_module.layout,
            auxiliary=trainer.lightning_module.auxiliary_rows(self.store, 512),
        )


def three_recorded(
    prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, numbers: Sequence[int]
) -> list[list[Completion]]:
    return recorded(prompts, 3)


def one_step(
    method: str, folder: Path, dtype: str, accumulate: int, strategy: str = "auto", devices: int = 1
) -> dict[str, Tensor]:
    """The gradient by parameter name (on rank zero) of one step over all rows of the method's case."""
    module = build(method, folder, dtype=dtype)
    data: pl.LightningDataModule
    if isinstance(module, OnPolicyModule):
        # responses that were recorded, whoever asks: what is compared is how they are cut
        module.collector.sampler.answers = three_recorded  # type: ignore[method-assign]  # as above
        module.rollout = module.collector.config = replace(module.rollout, minibatches=1)
        (folder.parent / "prompts").mkdir(exist_ok=True)
        data = prompt_files(folder.parent / "prompts")
        data.batch_size = 48
    else:
        data = OneStep(method)
    catcher = GradientCatcher()
    trainer = quiet_trainer(
        catcher,
        devices=devices,
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        accumulate_grad_batches=accumulate,
        max_steps=1,
        gradient_clip_val=CLIP,
    )
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
    return catcher.gradients


if __name__ == "__main__":
    model, accumulate_, strategy_, devices_, folder_ = sys.argv[1:]
    torch.set_num_threads(1)
    for method_, dtype_ in product(METHODS, DTYPES):
        try:
            found = one_step(method_, Path(model), dtype_, int(accumulate_), strategy_, int(devices_))
        except Exception:  # of one method, which is no reason to say nothing of the others
            (Path(folder_) / f"{method_}-{dtype_}.txt").write_text(traceback.format_exc())
            continue
        if torch.distributed.get_rank() == 0:
            torch.save(found, Path(folder_) / f"{method_}-{dtype_}.pt")
