"""What the on-policy demos learn, and TRL's GRPO from the same start beside them: held-out reward against time.

    python benchmarks/grpo_learning.py --out DIR                # configs/demo_grpo.yaml, demo_ppo.yaml, TRL; 3 seeds
    python benchmarks/grpo_learning.py --out DIR --plot FILE    # and draw the curves

All sides have the same rows, prompts a step, responses, learning rate and precision, and measure greedy answers to the
same held-out prompts every 10 steps and at the end. Seconds count from the start of a process; TRL stops after ten
minutes. Every run leaves a JSON file in DIR, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from learning import Measured, Rows, add_options, collect, draw, fitted, prepare, read
from reward import run
from sides import HERE

STEPS = {"demo_grpo": 40, "demo_ppo": 60, "TRL GRPO": 40}
LEARNT, BUDGET_S = 0.8, 600


def ours(config: str, precision: str, steps: int, model: str, seed: int, home: Path) -> Rows:
    """Of a config."""
    return fitted(config, model, seed, precision, home, "--trainer.max_steps", str(steps))


def trl(steps: int, model: str, seed: int, home: Path) -> Rows:
    """Of TRL."""
    log = home / "log.jsonl"
    command = [str(HERE / "grpo_learning_trl.py"), "--model", model, "--log", str(log)]
    command += ["--steps", str(steps), "--seed", str(seed), "--budget", str(BUDGET_S)]
    run([sys.executable, *command], home)
    return read(log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--only", choices=list(STEPS), action="append", help="these sides alone")
    options = parser.parse_args()
    options.data = None
    prepare()
    sides: dict[str, Measured] = {}
    for side in options.only or STEPS:
        steps = options.steps or STEPS[side]
        sides[side] = partial(trl, steps) if side == "TRL GRPO" else partial(ours, side, options.precision, steps)
    kept = collect(sides, options, LEARNT)
    if options.plot:
        draw(kept, options.plot, {"": LEARNT})


if __name__ == "__main__":
    main()
