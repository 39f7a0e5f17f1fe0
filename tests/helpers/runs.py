"""Files of small chats, and a module and a trainer that do nothing but count what a data module gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from helpers import tiny
from lit_posttrain.callbacks import AtomicCheckpointIO
from lit_posttrain.types import RowLayout, TreeBatch


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(first: int, count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(first, first + count)]


class Counting(LightningModule):
    """Holds what a data module asks for, and counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = tiny.tokenizer()
        self.max_positions = 128
        self.layout = RowLayout()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []
        self.validated: dict[int, int] = {}

    def training_step(self, batch: TreeBatch, _: int) -> torch.Tensor:
        self.seen += batch.example_ids
        return self.weight * batch.target_ids.numel()

    def validation_step(self, batch: TreeBatch, _: int, dataloader_idx: int = 0) -> None:
        self.validated[dataloader_idx] = self.validated.get(dataloader_idx, 0) + batch.num_trees

    def test_step(self, batch: TreeBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validation_step(batch, batch_idx, dataloader_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """One epoch, no sanity check."""
    return quiet_trainer(
        *callbacks, **{"max_epochs": 1, "num_sanity_val_steps": 0, "default_root_dir": tmp_path, **options}
    )


def quiet_trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """A trainer on the CPU that says nothing, and saves only where a callback does, in whole files."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        quiet["enable_checkpointing"] = False
    return Trainer(
        callbacks=list(callbacks), **{"accelerator": "cpu", "plugins": [AtomicCheckpointIO()], **quiet, **options}
    )
