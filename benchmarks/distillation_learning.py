"""What a student learns from a teacher: held-out reward against time, beside the teacher's.

    python benchmarks/distillation_learning.py --out DIR                # 3 seeds of the student, one teacher
    python benchmarks/distillation_learning.py --out DIR --plot FILE    # and draw the curves

The teacher is the model as configs/demo_grpo.yaml leaves it, exported to DIR/teacher; the student is the model as it
comes, and is distilled by configs/distillation.yaml on the demo's prompts. It answers them itself; the reward measures,
and has no part in the loss. Greedy answers to held-out prompts are measured every 10 steps and at the end. Seconds
count from the start of a process. Every run leaves a JSON file in DIR, so that it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from learning import Rows, add_options, collect, draw, fitted, held_out, prepare, reached
from reward import run
from sides import model_folder

STEPS, SHARE = 40, 0.9
TASK = ["--data.path", "builtin:demo_words", "--data.val_path", "builtin:demo_words_heldout", "--data.batch_size", "8"]
TASK += ["--data.val_fraction", "0", "--model.rewards", "[{class_path: ExactMatch}]"]
TASK += ["--model.rollout.group_size", "4", "--model.rollout.max_new_tokens", "8"]
TASK += ["--trainer.check_val_every_n_epoch", "10"]


def teacher(out: Path, model: str, precision: str, steps: int) -> tuple[str, float]:
    """The teacher's folder, made once, and its held-out reward."""
    folder, log = out / "teacher", out / "teacher.json"
    if not log.exists():
        with tempfile.TemporaryDirectory() as scratch:
            home = Path(scratch)
            start = model_folder(model, home / "model")
            rows = fitted("demo_grpo", start, 0, precision, home, "--trainer.max_steps", str(steps))
            exported = ["export", "--ckpt", "runs/run/last.ckpt", "--out", "hf"]
            run([sys.executable, "-m", "lit_posttrain", *exported], home)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(home / "hf", folder)
            log.write_text(json.dumps(rows) + "\n")
    return str(folder.resolve()), held_out(json.loads(log.read_text()))[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("extra", nargs="*", help="further options of lit-posttrain fit, behind --")
    options = parser.parse_args()
    options.data = None
    prepare()
    out, steps = Path(options.out), options.steps or STEPS
    out.mkdir(parents=True, exist_ok=True)
    folder, score = teacher(out, options.model, options.precision, steps)
    print(f"the teacher: held-out {score:.2f}")

    def ours(model: str, seed: int, home: Path) -> Rows:
        how = ["--model.teacher.path", folder, "--model.optim.lr", str(options.lr), "--trainer.max_steps", str(steps)]
        return fitted("distillation", model, seed, options.precision, home, *TASK, *how, *options.extra)

    kept = collect({"distillation": ours}, options, SHARE * score)
    for runs in kept.values():
        shares = [held_out(rows)[-1] / score if score else 0.0 for rows in runs]
        told = ", ".join(f"{share:.2f}" for share in shares)
        first = sum(reached(rows, SHARE * score) is not None for rows in runs)
        print(f"share of the teacher's reward at the end: {told}; {first} of {len(runs)} seeds reach {SHARE}")
    if options.plot:
        draw(kept, options.plot, {"the teacher": score, f"{SHARE} of it": SHARE * score})


if __name__ == "__main__":
    main()
