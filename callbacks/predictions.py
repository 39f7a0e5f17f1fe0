"""Writes the predictions of `lit-posttrain predict` as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_posttrain.callbacks.plan_lines import number_of
from lit_posttrain.callbacks.protocols import NamesPredictedRows
from lit_posttrain.runs.folder import predictions_in


class PredictionWriter(BasePredictionWriter):
    """Writes `predictions.jsonl` (with several processes one file a rank) into the run's folder, at the end."""

    def __init__(self) -> None:
        super().__init__("batch")
        self._rows = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty file beside where the finished one will be."""
        self._rows = 0
        self._part(trainer).parent.mkdir(parents=True, exist_ok=True)
        self._part(trainer).write_text("", encoding="utf-8")

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
        """Append the rows of a batch, each with the `source` it came from."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, NamesPredictedRows):
            sources = data.predicted_row_sources([row["row"] for row in prediction], dataloader_idx)
            prediction = [
                {"source": source, **{k: v for k, v in row.items() if k not in ("row", "file")}}
                for source, row in zip(sources, prediction, strict=True)
            ]
        with self._part(trainer).open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in prediction)
        self._rows += len(prediction)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the file to its place and print where that is. Files of an earlier prediction are removed: it may have
        had more processes."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            for old in predictions_in(Path(trainer.default_root_dir)):
                if old.suffix == ".jsonl":
                    old.unlink()
        trainer.strategy.barrier()
        self._part(trainer).replace(self._file(trainer))
        print(f"wrote {number_of(self._rows, 'row', 'rows')} to {self._file(trainer)}", flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print where the rows so far are kept; an unfinished file never takes the name of a finished one."""
        if self._rows:
            kept = f"{number_of(self._rows, 'row is', 'rows are')} kept in {self._part(trainer)}"
            print(f"stopped: {kept}; the next predict begins anew", file=sys.stderr, flush=True)
        else:
            self._part(trainer).unlink(missing_ok=True)

    def _file(self, trainer: Trainer) -> Path:
        suffix = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        return Path(trainer.default_root_dir) / f"predictions{suffix}.jsonl"

    def _part(self, trainer: Trainer) -> Path:
        return self._file(trainer).with_suffix(".part")
