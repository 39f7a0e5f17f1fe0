"""What online DPO learns on the task of the GRPO demo: held-out reward against time.

    python benchmarks/online_dpo_learning.py --out DIR                # configs/demo_online_dpo.yaml, 3 seeds
    python benchmarks/online_dpo_learning.py --out DIR --plot FILE    # and draw the curves

Greedy answers to held-out prompts are measured every 10 steps and at the end. Seconds count from the start of a
process. Every run leaves a JSON file in DIR, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from learning import Rows, add_options, collect, draw, fitted, prepare

LEARNT = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("extra", nargs="*", help="further options of lit-posttrain fit, behind --")
    options = parser.parse_args()
    options.data = None
    prepare()

    def ours(model: str, seed: int, home: Path) -> Rows:
        steps = [] if options.steps is None else ["--trainer.max_steps", str(options.steps)]
        return fitted("demo_online_dpo", model, seed, options.precision, home, *steps, *options.extra)

    kept = collect({"demo_online_dpo": ours}, options, LEARNT)
    if options.plot:
        draw(kept, options.plot, {"": LEARNT})


if __name__ == "__main__":
    main()
