"""What a run of the command line has left in its folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent


def weights(path: str | Path = "runs/r/last.ckpt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def checkpoint(path: str | Path = "runs/r/last.ckpt") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def metrics(run: str = "r") -> list[dict[str, str]]:
    with Path(f"runs/{run}/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
