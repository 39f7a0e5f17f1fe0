"""A reference that follows the policy (TR-DPO, Gorbatovski et al. 2024)."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_posttrain.callbacks.protocols import SyncsReference, part_of
from lit_posttrain.errors import PostTrainError
from lit_posttrain.trainer_state import ends_step


class ReferenceSync(Callback):
    """Moves the reference towards the policy every n optimizer steps. Checkpoints hold the moved reference."""

    def __init__(self, every_n_steps: int = 256, mix: float = 1.0) -> None:
        """
        Args:
            every_n_steps: Optimizer steps between two updates of the reference.
            mix: Share of the policy in the new reference; 1 replaces it, 0.6 is a soft update.
        """
        if every_n_steps < 1 or not 0 < mix <= 1:
            raise PostTrainError(
                f"ReferenceSync: every_n_steps is {every_n_steps} and mix {mix}; at least 1, and above 0 up to 1"
            )
        self.every_n_steps, self.mix = every_n_steps, mix

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a method whose reference cannot be updated so."""
        reference = part_of(pl_module, SyncsReference)
        if reference is None:
            raise PostTrainError(f"ReferenceSync needs a method with a reference, not {type(pl_module).__name__}")
        reference.check_sync(self.mix)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the reference at the end of every n-th optimizer step."""
        reference = part_of(pl_module, SyncsReference)
        if reference is not None and ends_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0:
            reference.sync(self.mix)
