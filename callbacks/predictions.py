"""`lit-posttrain predict` writes what the method predicts, a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_posttrain.callbacks.protocols import NamesEvaluatedRows


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.jsonl` (with several processes one file a rank) into the run's folder."""

    def __init__(self) -> None:
        super().__init__("batch")
        self._written: set[Path] = set()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the rows of a batch, each with the `source` it came from; the first batch starts the file anew."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, NamesEvaluatedRows):
            sources = data.evaluated_row_sources([row["row"] for row in prediction], dataloader_idx)
            prediction = [
                {"source": source, **{k: v for k, v in row.items() if k not in ("row", "file")}}
                for source, row in zip(sources, prediction, strict=True)
            ]
        suffix = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        file = Path(trainer.default_root_dir) / f"predictions{suffix}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a" if file in self._written else "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in prediction)
        self._written.add(file)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the predictions are."""
        if trainer.is_global_zero:
            print(f"wrote {', '.join(str(f) for f in sorted(self._written))}")
