"""The final figures of a run, read from its metrics.csv."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

METRICS = "metrics.csv"
_SHARE, _LEAST = 10, 10


@dataclass(frozen=True)
class Figure:
    """A metric's value. steps: number of logged steps that it is the mean of; 1 for a validation's."""

    value: float
    steps: int

    def __str__(self) -> str:
        return format(self, ".4g")

    def __format__(self, spec: str) -> str:
        """The value in a number's format, and the number of steps if it is a mean."""
        return format(self.value, spec) + (f" (mean of {self.steps} steps)" if self.steps > 1 else "")


def run_figures(file: Path, before: int | None = None) -> dict[str, Figure]:
    """The figure of every metric at the end of a run; empty if there is no file.

    A training metric's is the mean over the last tenth of its logged steps, at least ten: a single step is a few rows.
    A validation metric's is its last value. before: use rows of earlier steps only. Values that are no numbers are left
    out: a killed run may leave an incomplete row.
    """
    if not file.is_file():
        return {}
    values: dict[str, list[float]] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if None in row.values() or not (_number(row.get("step")) < (math.inf if before is None else before)):
                continue
            for name, text in row.items():
                if name != "step" and not math.isnan(value := _number(text)):
                    values.setdefault(name, []).append(value)
    figures = {}
    for name, found in values.items():
        last = found[-max(len(found) // _SHARE, _LEAST) :] if name.startswith("train/") else found[-1:]
        figures[name] = Figure(sum(last) / len(last), len(last))
    return figures


def _number(text: object) -> float:
    """The number that a text stands for; NaN if it is none."""
    try:
        return float(str(text))
    except ValueError:
        return math.nan
