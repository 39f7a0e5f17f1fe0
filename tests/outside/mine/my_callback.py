"""A callback of one's own, with a state that is saved: how many tokens were trained on."""

from typing import Any

import lightning.pytorch as pl


class TokenCount(pl.Callback):
    """Logs the trained tokens so far, in units, as `tokens/seen`."""

    def __init__(self, unit: int = 1000) -> None:
        """
        Args:
            unit: Tokens in one.
        """
        self.unit, self.seen = unit, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen += batch.target_ids.numel()
        pl_module.log("tokens/seen", self.seen / self.unit)

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]
