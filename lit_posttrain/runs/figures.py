"""The figures that stand for a run, read from its metrics.csv."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

METRICS = "metrics.csv"
_SHARE, _LEAST = 10, 10


@dataclass(frozen=True)
class Figure:
    """A metric's value, and over how many logged steps it is a mean; 1 for a validation's."""

    value: float
    steps: int

    def __str__(self) -> str:
        return format(self, ".4g")

    def __format__(self, spec: str) -> str:
        """The value by a format of numbers, and what it is a mean of."""
        return format(self.value, spec) + (f" (mean of {self.steps} steps)" if self.steps > 1 else "")


def run_figures(file: Path, before: int | None = None) -> dict[str, Figure]:
    """By metric its figure at the end of a run.

    Of a training metric the mean over the last tenth of its logged steps, but ten at least: a single step's value is
    that of a few rows. Of a validation metric the last value. before: only rows of steps below it. Empty where there is
    no such file. What is no number is left out: a run that was killed leaves a row that is cut short.
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
    """NaN for what is none."""
    try:
        return float(str(text))
    except ValueError:
        return math.nan
