"""Room on the disk for a run's checkpoints, looked at before anything is trained."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from lit_posttrain.callbacks.memory import optimizer_state_bytes, parameter_bytes
from lit_posttrain.runs.checkpoint_files import require_space
from lit_posttrain.runs.checkpoint_shards import bytes_on_disk


def require_space_for_checkpoints(trainer: Trainer, pl_module: LightningModule) -> None:
    """Check that the run's folder has room for last.ckpt and best.ckpt, and for the copy that is written before one of
    them is replaced.

    Raises:
        PostTrainError: if it has not.
    """
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in pl_module.parameters() if p.requires_grad or pl_module.strict_loading]
    one = parameter_bytes(parameters)
    for optimizer in trainer.optimizers:
        one += optimizer_state_bytes(optimizer) or 0
    names = ["last.ckpt", "best.ckpt"] if trainer.enable_validation else ["last.ckpt"]
    held = sum(bytes_on_disk(folder / name) for name in names)
    require_space(folder, one * (len(names) + 1) - held, f"the run's checkpoints ({', '.join(names)})")
