"""metrics.csv: the metrics of a run in one file of its folder."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_posttrain.runs.atomic import whole_file


class MetricsCSV(Logger):
    """metrics.csv: one row per step, a column per metric, complete after every call.

    A step that was logged before (by a run that is resumed from an earlier checkpoint) replaces the rows from there on.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._row: dict[str, str] = {}  # the last one, which may get more metrics
        self._row_start = 0  # where it begins in the file
        self._open = False
        self._kept_steps = 0  # those of the run that is resumed

    @property
    def name(self) -> str:
        return ""  # Lightning's callbacks make folders of it within the run's

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: they are in the run's config.yaml."""

    def goes_on_from(self, step: int) -> None:
        """The run is resumed after `step` optimizer steps: their rows stay, and the last one may get the metrics of a
        validation that the resumed run begins with."""
        self._kept_steps = step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add to the row of `step`, by default the last one."""
        current = int(self._row.get("step", 0)) if step is None else step
        if not self._open or current < int(self._row.get("step", -1)):
            self._go_back_to(current)
        if self._row.get("step") != str(current):
            self._row = {"step": str(current)}
            self._row_start = self.file.stat().st_size
        self._row |= {name: str(value) for name, value in metrics.items()}
        fresh = [name for name in self._row if name not in self._columns]
        if fresh:
            rows = [row for row in self._read() if row["step"] != str(current)]
            self._columns += fresh
            self._write([*rows, self._row])
        else:
            with self.file.open("r+", newline="", encoding="utf-8") as stream:
                stream.seek(self._row_start)
                stream.truncate()
                self._writer(stream).writerow(self._row)

    def _go_back_to(self, step: int) -> None:
        """Keep only the rows before `step` and those of the steps before the resume."""
        self._open = True
        end = max(step, self._kept_steps)
        rows = [row for row in self._read() if _number(row.get("step")) < end]
        self._columns = self._columns or ["step"]
        last = rows[-1] if rows and rows[-1]["step"] == str(step) else {}
        self._row = {name: value for name, value in last.items() if value}
        self._kept_steps = 0  # from now on this run's own
        self._write(rows)

    def _read(self) -> list[dict[str, str]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, restval="")
            rows = list(reader)
            self._columns = self._columns or list(reader.fieldnames or [])
        return rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        with whole_file(self.file) as part, part.open("w", newline="", encoding="utf-8") as stream:
            writer = self._writer(stream)
            writer.writeheader()
            for row in rows:
                self._row_start = stream.tell()
                writer.writerow(row)

    def _writer(self, stream: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(stream, self._columns, restval="", extrasaction="ignore", lineterminator="\n")


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return float("inf")  # a row that a crash cut short
