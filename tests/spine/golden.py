"""Fifty steps of a tiny run of a method, as text: all that each step logged, to the last bit.

    python tests/spine/golden.py              # compares every method with golden/METHOD.csv
    python tests/spine/golden.py --write      # writes them anew

A redesign must change none of it; where it does, the difference is explained. The first line of a file names the
processor and the torch that computed it: on others the last digits are others.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a script

from dataclasses import replace

import lightning.pytorch as pl
import torch
from cases import METHODS, build
from helpers import tiny
from helpers.runs import quiet_trainer

from lit_posttrain.loggers import MetricsCSV

FOLDER = Path(__file__).with_name("golden")
STEPS, LEARNING_RATE = 50, 1e-3  # so high that one step that is another one changes all that follow
CLOCKED = ("seconds", "per_s")


def machine() -> str:
    """What the last digits depend on."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    told = dict(line.replace("\t", "").split(": ", 1) for line in reversed(lines) if ": " in line)
    numbers = " ".join(told.get(name, "?") for name in ("cpu family", "model", "stepping"))
    cpu = f"{told.get('model name', 'unknown')} ({numbers})"
    return f"{cpu}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def run(method: str, model: Path, folder: Path) -> list[dict[str, str]]:
    """A row a step, without what depends on the clock."""
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    data = folder / "data"
    data.mkdir(parents=True)
    trainer = quiet_trainer(
        logger=MetricsCSV(folder),
        log_every_n_steps=1,
        max_steps=STEPS,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    module = build(method, model)
    module.optim = replace(module.optim, lr=LEARNING_RATE, options={"fused": False})
    trainer.fit(module, datamodule=METHODS[method].data(data))
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == [str(step) for step in range(STEPS)]
    return [{name: row[name] for name in row if not any(part in name for part in CLOCKED)} for row in rows]


def write(method: str, rows: list[dict[str, str]]) -> None:
    """The file of a method."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{method}.csv").open("w", newline="") as stream:
        stream.write(f"# {machine()}\n")
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(method: str) -> tuple[str, list[dict[str, str]]]:
    """The machine of a method's file, and its rows."""
    with (FOLDER / f"{method}.csv").open(newline="") as stream:
        told = stream.readline().removeprefix("# ").rstrip("\n")
        return told, list(csv.DictReader(stream))


def differences(rows: list[dict[str, str]], expected: list[dict[str, str]]) -> dict[str, tuple[int, float]]:
    """By metric the first step in which it differs, and the largest relative difference; NaN where a side lacks it."""
    found: dict[str, tuple[int, float]] = {}
    for name in dict.fromkeys([*expected[0], *rows[0]]):
        pairs = [(mine.get(name, ""), other.get(name, "")) for mine, other in zip(rows, expected, strict=True)]
        steps = [step for step, (mine, other) in enumerate(pairs) if mine != other]
        if steps:
            apart = [_apart(*pairs[step]) for step in steps]
            found[name] = steps[0], max(apart)
    return found


def _apart(one: str, other: str) -> float:
    if not one or not other:
        return float("nan")
    a, b = float(one), float(other)
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


def main() -> None:
    """Compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for method in options.methods:
        with tempfile.TemporaryDirectory() as home:
            rows = run(method, tiny.save_model(Path(home) / "model"), Path(home))
        if options.write:
            write(method, rows)
            continue
        told, expected = read(method)
        found = differences(rows, expected)
        where = "" if told == machine() else f" (computed on another machine: {told})"
        print(f"{method}: {found or 'the same'}{where}", flush=True)


if __name__ == "__main__":
    main()
