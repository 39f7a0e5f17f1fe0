"""A validation with RewardLogger, in one process or as one of several."""

from __future__ import annotations

from pathlib import Path

import torch
from cases import comparison_files

from helpers.runs import quiet_trainer
from lit_posttrain import ModelSpec, RewardModel
from lit_posttrain.callbacks import RewardLogger


def look_at_rewards(model: str, folder: Path, devices: int = 1) -> None:
    """Validate a fresh reward model on half of some pairs; leaves run/ and the metrics, rewards-RANK.pt."""
    torch.manual_seed(0)
    data = comparison_files(folder)
    data.val_fraction, data.eval_batch_size = 0.5, 5
    trainer = quiet_trainer(
        RewardLogger(show=3),
        devices=devices,
        default_root_dir=str(folder / "run"),
    )
    found = trainer.validate(RewardModel(ModelSpec(model)), datamodule=data, verbose=False)
    torch.save(dict(found[0]), folder / f"rewards-{trainer.global_rank}.pt")
    trainer.strategy.barrier()
